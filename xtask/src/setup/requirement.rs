//! `Requires-Dist`: which other wheels a wheel needs on Linux. Only the plain form that torch uses is read.

use anyhow::{Context, Result};

/// One pinned requirement, such as `cuda-toolkit[cudart]==13.0.2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    /// Project name, normalised: lower case, `-` between words.
    pub(crate) name: String,
    pub(crate) extras: Vec<String>,
    /// Version, or its beginning where it ended in `.*`.
    pub(crate) version: String,
    /// Only the beginning of the version is given.
    pub(crate) is_prefix: bool,
}

impl Requirement {
    /// Reads `name[extra,...]==version`; `None` for a requirement that is not pinned.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (project, version) = text.split_once("==")?;
        let (name, extras) = match project.trim().split_once('[') {
            Some((name, extras)) => (name, extras.trim_end_matches(']')),
            None => (project.trim(), ""),
        };
        let version = version.trim();
        let prefix = version.strip_suffix(".*");
        Some(Self {
            name: normalise(name),
            extras: extras
                .split(',')
                .map(str::trim)
                .filter(|extra| !extra.is_empty())
                .map(str::to_owned)
                .collect(),
            version: prefix.unwrap_or(version).to_owned(),
            is_prefix: prefix.is_some(),
        })
    }

    /// Whether a wheel of this version serves.
    pub(crate) fn accepts(&self, version: &str) -> bool {
        version == self.version
            || self.is_prefix && version.strip_prefix(&self.version).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The requirement as pip reads it.
    pub(crate) fn to_pip(&self) -> String {
        format!("{}=={}{}", self.name, self.version, if self.is_prefix { ".*" } else { "" })
    }
}

/// A project's name as indexes spell it.
pub(crate) fn normalise(name: &str) -> String {
    name.trim().to_lowercase().replace(['_', '.'], "-")
}

/// The pinned requirements in a wheel's METADATA that hold on Linux with these extras.
pub(crate) fn on_linux(metadata: &str, extras: &[String]) -> Result<Vec<Requirement>> {
    let header = metadata.split("\n\n").next().context("the wheel's METADATA is empty")?;
    Ok(header
        .lines()
        .filter_map(|line| line.strip_prefix("Requires-Dist:"))
        .filter_map(|text| {
            let (requirement, marker) = text.split_once(';').unwrap_or((text, ""));
            marker_holds(marker, extras).then(|| Requirement::parse(requirement)).flatten()
        })
        .collect())
}

/// Evaluates markers of the shape `(a or b) and extra == 'x'`, which is all that these wheels use.
fn marker_holds(marker: &str, extras: &[String]) -> bool {
    let marker = marker.replace(['(', ')'], " ");
    marker.trim().is_empty()
        || marker.split(" and ").all(|all| all.split(" or ").any(|clause| clause_holds(clause, extras)))
}

fn clause_holds(clause: &str, extras: &[String]) -> bool {
    let Some((variable, value)) = clause.split_once("==") else { return false };
    let value = value.trim().trim_matches(['\'', '"']);
    match variable.trim() {
        "platform_system" => value == "Linux",
        "sys_platform" => value == "linux",
        "extra" => extras.iter().any(|extra| extra == value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCH: &str = "Metadata-Version: 2.4\n\
        Requires-Dist: filelock\n\
        Requires-Dist: setuptools<82\n\
        Requires-Dist: cuda-toolkit[cudart,cupti]==13.0.2; platform_system == \"Linux\"\n\
        Requires-Dist: cuda-bindings<14,>=13.0.3; platform_system == \"Linux\"\n\
        Requires-Dist: nvidia-nccl-cu13==2.28.9; platform_system == \"Linux\"\n\
        Requires-Dist: something==1.0; platform_system == \"Windows\"\n\
        Requires-Dist: optree==0.13.0; extra == \"optree\"\n\
        \n\
        Requires-Dist: not-a-header==1\n";

    const TOOLKIT: &str = "Requires-Dist: nvidia-cuda-runtime==13.0.96.*; (sys_platform == 'linux' or sys_platform == 'win32') and extra == 'all'\n\
        Requires-Dist: nvidia-cuda-runtime==13.0.96.*; (sys_platform == 'linux' or sys_platform == 'win32') and extra == 'cudart'\n\
        Requires-Dist: nvidia-npp==13.0.1.2.*; (sys_platform == 'linux' or sys_platform == 'win32') and extra == 'npp'\n";

    #[test]
    fn torch_names_what_it_needs_on_linux() {
        let needed = on_linux(TORCH, &[]).unwrap();
        let names: Vec<_> = needed.iter().map(Requirement::to_pip).collect();
        assert_eq!(names, ["cuda-toolkit==13.0.2", "nvidia-nccl-cu13==2.28.9"]);
        assert_eq!(needed[0].extras, ["cudart", "cupti"]);
    }

    #[test]
    fn the_toolkit_is_opened_by_its_extras() {
        let needed = on_linux(TOOLKIT, &["cudart".into()]).unwrap();
        assert_eq!(needed.len(), 1);
        assert!(needed[0].accepts("13.0.96"));
        assert!(needed[0].accepts("13.0.96.1"));
        assert!(!needed[0].accepts("13.0.961"));
        assert_eq!(needed[0].to_pip(), "nvidia-cuda-runtime==13.0.96.*");
    }
}
