//! A project's page in a package index, by the `/simple/` JSON of PEP 691, and the choice among its wheels.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::http::Http;
use super::pip::{PYTHON_TAG, PipConfig};
use super::platform::Platform;
use super::requirement::{Requirement, normalise};
use super::url;

const SIMPLE_JSON: &str = "application/vnd.pypi.simple.v1+json";

/// A project's page is a few hundred kilobytes; anything beyond this is something else.
const PAGE_BYTES_MAX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Page {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    filename: String,
    url: String,
}

/// A wheel that an index offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// File name, `name-version-python-abi-platform.whl`.
    pub(crate) filename: String,
    /// Where to get it.
    pub(crate) url: String,
}

/// Finds the wheel for a requirement: the first index of the user's that has it.
pub(crate) fn find(
    http: &Http,
    pip: &PipConfig,
    requirement: &Requirement,
    platform: Platform,
) -> Result<Offer> {
    let mut refusals = Vec::new();
    for index in &pip.indexes {
        let shown = url::split_credentials(index).url;
        match page(http, index, &requirement.name) {
            Ok(offers) => match choose(offers, requirement, platform) {
                Some(offer) => return Ok(offer),
                None => refusals.push(format!("{shown} has no wheel for {platform}")),
            },
            Err(error) => refusals.push(format!("{shown}: {error:#}")),
        }
    }
    bail!("cannot find {} in the package index: {}", requirement.to_pip(), refusals.join("; "))
}

fn page(http: &Http, index: &str, project: &str) -> Result<Vec<Offer>> {
    let address = url::split_credentials(&format!("{index}/{project}/"));
    let response = http.get(&address.url, &[("Accept", SIMPLE_JSON)], address.authorization.as_deref())?;
    let kind = response.header("content-type");
    if !kind.starts_with(SIMPLE_JSON) {
        bail!("it answers with {kind:?} instead of {SIMPLE_JSON}");
    }
    let base = response.url();
    let page: Page = serde_json::from_slice(&response.bytes(PAGE_BYTES_MAX)?)
        .context("its page does not follow PEP 691")?;
    Ok(page
        .files
        .into_iter()
        .map(|file| Offer { url: url::join(&base, &file.url), filename: file.filename })
        .collect())
}

/// Picks one wheel, the same one whatever the order of the page and the Python installed here.
fn choose(offers: Vec<Offer>, requirement: &Requirement, platform: Platform) -> Option<Offer> {
    offers
        .into_iter()
        .filter_map(|offer| {
            let name = WheelName::parse(&offer.filename)?;
            let fits = normalise(name.project) == requirement.name
                && requirement.accepts(name.version)
                && name.platforms.split('.').any(|tag| platform.accepts(tag));
            let rank = (name.python == PYTHON_TAG, name.abi == PYTHON_TAG, version_key(name.version));
            fits.then(|| ((rank, offer.filename.clone()), offer))
        })
        .max_by(|(left, _), (right, _)| left.cmp(right))
        .map(|(_, offer)| offer)
}

fn version_key(version: &str) -> Vec<u64> {
    version.split(['.', '+']).map(|part| part.parse().unwrap_or(0)).collect()
}

struct WheelName<'a> {
    project: &'a str,
    version: &'a str,
    python: &'a str,
    abi: &'a str,
    platforms: &'a str,
}

impl<'a> WheelName<'a> {
    fn parse(filename: &'a str) -> Option<Self> {
        let fields: Vec<&str> = filename.strip_suffix(".whl")?.split('-').collect();
        let ([project, version, python, abi, platforms] | [project, version, _, python, abi, platforms]) =
            fields[..]
        else {
            return None;
        };
        Some(Self { project, version, python, abi, platforms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], requirement: &str, platform: Platform) -> Option<String> {
        let offers =
            names.iter().map(|name| Offer { filename: (*name).into(), url: String::new() }).collect();
        choose(offers, &Requirement::parse(requirement).unwrap(), platform).map(|offer| offer.filename)
    }

    const TORCH: [&str; 7] = [
        "torch-2.11.0-cp310-cp310-manylinux_2_28_x86_64.whl",
        "torch-2.11.0-cp313-cp313t-manylinux_2_28_x86_64.whl",
        "torch-2.11.0-cp313-cp313-manylinux_2_28_x86_64.whl",
        "torch-2.11.0-cp313-cp313-manylinux_2_28_aarch64.whl",
        "torch-2.11.0-cp314-cp314-macosx_11_0_arm64.whl",
        "torch-2.11.0-cp313-cp313-win_amd64.whl",
        "torch-2.11.1-cp313-cp313-manylinux_2_28_x86_64.whl",
    ];

    #[test]
    fn platform_and_version_decide_and_order_does_not() {
        let expected = Some("torch-2.11.0-cp313-cp313-manylinux_2_28_x86_64.whl".to_owned());
        assert_eq!(chosen(&TORCH, "torch==2.11.0", Platform::LinuxX86_64), expected);
        let mut reversed = TORCH;
        reversed.reverse();
        assert_eq!(chosen(&reversed, "torch==2.11.0", Platform::LinuxX86_64), expected);
    }

    #[test]
    fn any_python_serves_where_the_usual_one_is_missing() {
        let mac = chosen(&TORCH, "torch==2.11.0", Platform::MacosArm64);
        assert_eq!(mac.as_deref(), Some("torch-2.11.0-cp314-cp314-macosx_11_0_arm64.whl"));
        assert_eq!(chosen(&TORCH, "torch==2.12.0", Platform::LinuxX86_64), None);
    }

    #[test]
    fn of_several_versions_with_one_beginning_the_highest_is_taken() {
        let names =
            ["nvidia_x-1.2.9-py3-none-any.whl", "nvidia_x-1.2.10-py3-none-any.whl", "nvidia-x-1.2.11.tar.gz"];
        let expected = Some("nvidia_x-1.2.10-py3-none-any.whl".to_owned());
        assert_eq!(chosen(&names, "nvidia-x==1.2.*", Platform::LinuxAarch64), expected);
    }

    #[test]
    fn a_tag_may_name_several_platforms() {
        let name = "nvidia_x-1.0-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl";
        assert!(chosen(&[name], "nvidia-x==1.0", Platform::LinuxX86_64).is_some());
        assert!(chosen(&[name], "nvidia-x==1.0", Platform::LinuxAarch64).is_none());
    }
}
