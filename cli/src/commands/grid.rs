//! Grids: keys of the recipe with several values each, and one job for each combination.

use hatchery_common::id::Name;

/// Most jobs of a grid.
const POINTS_MAX: usize = 1000;

/// Every combination of the values in `axes`, such as `train.lr=1e-3,3e-4`, as settings `key=value`.
pub(super) fn points(axes: &[String]) -> Result<Vec<Vec<String>>, String> {
    let mut points = vec![Vec::new()];
    for axis in axes {
        let example = "write a grid as key=value,value, such as train.lr=1e-3,3e-4";
        let (key, values) = axis.split_once('=').ok_or_else(|| format!("`{axis}`: {example}"))?;
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        if values.iter().any(|value| value.is_empty()) {
            return Err(format!("`{axis}`: {example}"));
        }
        let longer = |point: &Vec<String>, value: &str| {
            let setting = format!("{}={value}", key.trim());
            point.iter().cloned().chain([setting]).collect()
        };
        points = points.iter().flat_map(|point| values.iter().map(|value| longer(point, value))).collect();
        if points.len() > POINTS_MAX {
            return Err(format!("the grid has more than {POINTS_MAX} jobs"));
        }
    }
    Ok(points)
}

/// The name of the job at a point: `notes-lr-1e-3-n_layer-4`.
pub(super) fn name(base: &Name, point: &[String]) -> Name {
    let mut name = base.to_string();
    for setting in point {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        let leaf = key.rsplit('.').next().unwrap_or(key);
        name += &format!("-{leaf}-{value}");
    }
    Name::from_lossy(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_its_name() {
        let axes = ["train.lr=1e-3, 0.5".to_owned(), "model.n_layer=4,6".to_owned()];
        let points = points(&axes).unwrap();
        assert_eq!(points.len(), 4);
        assert_eq!(points[1], ["train.lr=1e-3", "model.n_layer=6"]);
        let names: Vec<String> =
            points.iter().map(|point| name(&Name::from_lossy("notes"), point).to_string()).collect();
        assert_eq!(names[0], "notes-lr-1e-3-n_layer-4");
        assert_eq!(names[3], "notes-lr-0.5-n_layer-6");
    }

    #[test]
    fn a_grid_without_values_is_refused() {
        for wrong in ["train.lr", "train.lr=", "train.lr=1,,2"] {
            assert!(points(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        let long: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
        assert!(points(&[format!("train.seed={}", long.join(","))]).unwrap_err().contains("1000"));
    }
}
