//! Puts libtorch into its folder: finds the wheels, takes what is missing, writes the manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use console::style;
use indicatif::HumanBytes;

use super::archive::{self, Member};
use super::http::Http;
use super::index;
use super::layout::{self, LAYOUT, TORCH_VERSION};
use super::manifest::{Entry, Manifest};
use super::pip::{self, PipConfig};
use super::platform::{Flavour, Platform};
use super::record::{self, Recorded};
use super::requirement::{self, Requirement};
use super::url;
use super::wheel::{Source, Wheel};
use crate::progress::Meter;

/// Where half-fetched parts wait to be completed.
const DOWNLOADS: &str = ".downloads";
const LOCK: &str = ".lock";
/// NVIDIA's compiler for kernels, and where its wheel has the libraries.
const COMPILER: &str = "nvidia-cuda-nvrtc";
pub(super) const COMPILER_LIBRARIES: &str = "nvidia/cu13/lib";
pub(super) const COMPILER_LIBRARY: &str = "libnvrtc.so.13";

/// Makes sure that `folder` holds libtorch in the flavour that was asked for, or one that contains it.
pub(crate) fn ensure(
    folder: &Path,
    platform: Platform,
    flavour: Flavour,
    is_forced: bool,
) -> Result<Manifest> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock =
        File::create(folder.join(LOCK)).with_context(|| format!("cannot write in {}", folder.display()))?;
    lock.lock().context("cannot wait for another setup to finish")?;

    let installed = Manifest::read(folder);
    if let Some(manifest) = &installed {
        let flavour_serves = manifest.flavour == flavour || !is_forced && manifest.flavour >= flavour;
        if manifest.layout == LAYOUT
            && manifest.version == TORCH_VERSION
            && manifest.platform == platform
            && flavour_serves
        {
            match manifest.first_missing(folder) {
                None => return Ok(installed.expect("the manifest was just looked at")),
                Some(path) => eprintln!("{path} is missing or has the wrong length: fetching it again"),
            }
        }
    }
    Manifest::remove(folder)?;
    let manifest = install(folder, platform, flavour)?;
    for stale in
        installed.iter().flat_map(|old| old.files.keys()).filter(|path| !manifest.files.contains_key(*path))
    {
        // A file of another flavour that is gone already is as good as one removed here.
        std::fs::remove_file(folder.join(stale)).ok();
    }
    manifest.write(folder)?;
    Ok(manifest)
}

fn install(folder: &Path, platform: Platform, flavour: Flavour) -> Result<Manifest> {
    eprintln!("libtorch {TORCH_VERSION} for {platform}, {flavour} libraries");
    let downloads = folder.join(DOWNLOADS);
    std::fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;

    // Whoever builds meanwhile is refused at once, not in the middle of the headers.
    let version = folder.join(layout::BUILD_VERSION);
    std::fs::create_dir_all(folder.join("torch"))
        .and_then(|()| std::fs::write(&version, "incomplete\n"))
        .with_context(|| format!("cannot write {}", version.display()))?;
    let pip = PipConfig::read();
    let http = Http::new(&pip)?;
    let chosen = choose(&http, &pip, &downloads, |finder| find_all(finder, platform, flavour))?;
    let mut files = take(&chosen, folder, &downloads, "libtorch")?;

    for (path, content) in layout::made_here(platform) {
        let entry = Entry { size_bytes: content.len() as u64, sha256: record::sha256(content.as_bytes())? };
        std::fs::write(folder.join(path), &content).with_context(|| format!("cannot write {path}"))?;
        files.insert(path.to_owned(), entry);
    }
    std::fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))?;
    let manifest = Manifest { layout: LAYOUT, version: TORCH_VERSION.to_owned(), platform, flavour, files };
    eprintln!("{} in {}", HumanBytes(manifest.size_bytes()), folder.display());
    Ok(manifest)
}

/// Puts NVIDIA's compiler for kernels, in the version that libtorch has, into `folder`, and gives the folder of its
/// libraries. It needs no GPU.
pub(super) fn ensure_compiler(folder: &Path, platform: Platform) -> Result<PathBuf> {
    let libraries = folder.join(COMPILER_LIBRARIES);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock =
        File::create(folder.join(LOCK)).with_context(|| format!("cannot write in {}", folder.display()))?;
    lock.lock().context("cannot wait for another setup to finish")?;
    let done = folder.join(format!("for-torch-{TORCH_VERSION}-on-{platform}"));
    if done.exists() && libraries.join(COMPILER_LIBRARY).exists() {
        return Ok(libraries);
    }
    let downloads = folder.join(DOWNLOADS);
    std::fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    let pip = PipConfig::read();
    let http = Http::new(&pip)?;
    let chosen = choose(&http, &pip, &downloads, |finder| find_compiler(finder, platform))?;
    take(&chosen, folder, &downloads, "NVRTC")?;
    std::fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))?;
    File::create(&done).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(libraries)
}

/// What `find` finds in the user's index, or, where that cannot be read in parts, among what pip downloads.
fn choose<'a>(
    http: &'a Http,
    pip: &'a PipConfig,
    downloads: &'a Path,
    find: impl Fn(&Finder<'a>) -> Result<Vec<Chosen<'a>>>,
) -> Result<Vec<Chosen<'a>>> {
    if !pip.no_index {
        match find(&Finder::Index { http, pip }) {
            Ok(chosen) => return Ok(chosen),
            Err(error) => {
                eprintln!("{} {error:#}", style("cannot read the wheels in parts:").yellow());
                eprintln!("downloading whole wheels with pip");
            }
        }
    }
    find(&Finder::Pip { downloads })
}

/// Puts what is missing of the wheels' members into `folder`; gives all of them.
fn take(
    chosen: &[Chosen<'_>],
    folder: &Path,
    downloads: &Path,
    title: &'static str,
) -> Result<BTreeMap<String, Entry>> {
    let mut files = BTreeMap::new();
    let mut work = Vec::new();
    for (wheel, members) in chosen {
        files.extend(
            members.iter().map(|member| (member.name.clone(), Entry::from(wheel.recorded(member).clone()))),
        );
        let is_missing = |member: &Member| !is_there(&folder.join(&member.name), wheel.recorded(member));
        // The spans are the same in every run, whatever is there already: so a part begun in an earlier one is found.
        let spans = archive::spans(members.iter().cloned());
        let missing = spans.into_iter().filter(|span| span.members.iter().any(is_missing));
        work.extend(missing.map(|span| (wheel, span)));
    }
    let total = work.iter().map(|(_, span)| span.length_bytes()).sum();
    let mut meter = Meter::new(title, total);
    for (wheel, span) in &work {
        meter.label(span.title());
        wheel.take(span, folder, downloads, &mut meter)?;
    }
    eprintln!("fetched {}", meter.finish());
    Ok(files)
}

fn is_there(path: &Path, recorded: &Recorded) -> bool {
    let Ok(file) = File::open(path) else { return false };
    file.metadata().is_ok_and(|found| found.len() == recorded.size_bytes)
        && record::sha256(file).is_ok_and(|sha256| sha256 == recorded.sha256)
}

/// How wheels are found.
enum Finder<'a> {
    /// In the user's index, to be read in parts.
    Index { http: &'a Http, pip: &'a PipConfig },
    /// By pip, which downloads them whole.
    Pip { downloads: &'a Path },
}

type Chosen<'a> = (Wheel<'a>, Vec<Member>);

/// The wheels and what is wanted of each: torch, and of NVIDIA's those that torch names for this flavour.
fn find_all<'a>(finder: &Finder<'a>, platform: Platform, flavour: Flavour) -> Result<Vec<Chosen<'a>>> {
    let (torch, needed) = open_torch(finder, platform)?;
    let members = torch.choose(|name| layout::wants_of_torch(name, platform, flavour))?;
    let mut chosen = vec![(torch, members)];
    for requirement in needed.iter().filter(|requirement| layout::wants_project(requirement, flavour)) {
        let wheel = open(finder, requirement, platform)?;
        let members = wheel.choose(|name| layout::wants_of_nvidia(name, &requirement.name, flavour))?;
        chosen.push((wheel, members));
    }
    Ok(chosen)
}

fn find_compiler<'a>(finder: &Finder<'a>, platform: Platform) -> Result<Vec<Chosen<'a>>> {
    let (_, needed) = open_torch(finder, platform)?;
    let compiler = needed.iter().find(|requirement| requirement.name == COMPILER);
    let wheel = open(finder, compiler.context("libtorch names no compiler for kernels")?, platform)?;
    let members = wheel.choose(|name| layout::wants_of_nvidia(name, COMPILER, Flavour::Cuda))?;
    Ok(vec![(wheel, members)])
}

/// torch, and what of NVIDIA's it names.
fn open_torch<'a>(finder: &Finder<'a>, platform: Platform) -> Result<(Wheel<'a>, Vec<Requirement>)> {
    let torch = Requirement::parse(&format!("torch=={TORCH_VERSION}")).expect("a pinned requirement");
    let torch = open(finder, &torch, platform)?;
    let mut needed = Vec::new();
    if platform.is_linux() {
        for requirement in requirement::on_linux(&torch.metadata()?, &[])? {
            if requirement.name == "cuda-toolkit" {
                let toolkit = open(finder, &requirement, platform)?;
                needed.extend(requirement::on_linux(&toolkit.metadata()?, &requirement.extras)?);
            } else {
                needed.push(requirement);
            }
        }
    }
    Ok((torch, needed))
}

fn open<'a>(finder: &Finder<'a>, requirement: &Requirement, platform: Platform) -> Result<Wheel<'a>> {
    match *finder {
        Finder::Index { http, pip } => {
            let offer = index::find(http, pip, requirement, platform)?;
            let same_origin =
                |index: &&String| url::origin(&url::split_credentials(index).url) == url::origin(&offer.url);
            let authorization = pip
                .indexes
                .iter()
                .find(same_origin)
                .and_then(|index| url::split_credentials(index).authorization);
            Wheel::open(offer.filename, Source::Remote { http, url: offer.url, authorization })
        }
        Finder::Pip { downloads } => {
            let path = pip::download(&requirement.to_pip(), downloads)?;
            let filename = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Wheel::open(filename, Source::Local(path))
        }
    }
}
