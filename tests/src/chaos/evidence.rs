//! What is left when all is over: events, jobs, checkpoints, the trainers' steps, logs, and what lies on the disks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{history::Records, site::Site};

/// What a piece manifest begins with, and the limits of a piece.
const MAGIC: &[u8] = b"HPM1";
const PIECE_BYTES: (u64, u64) = (64 << 10, 4 << 20);
const PIECES_AIM: u64 = 512;

/// An entry of the fleet's history.
#[derive(Clone, Debug)]
pub struct Event {
    /// Counts from 1.
    pub number: u64,
    pub at_ms: u64,
    pub kind: String,
    pub change: Value,
}

/// A step that a trainer began.
#[derive(Clone, Debug)]
pub struct Step {
    pub job: String,
    pub epoch: u64,
    pub process: u64,
    pub step: u64,
    /// When, not later than the lease was looked at.
    pub wall_ms: u64,
}

/// A checkpoint that was committed.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub id: String,
    pub manifest: Value,
    /// The names of the nodes that say that they hold it, verified and tried.
    pub ready_on: Vec<String>,
    /// Those of them that hold what it takes to answer and nothing else.
    pub serving_on: Vec<String>,
    pub wanted_on: usize,
    /// What its trainer wrote into it of its run; none if that blob is not there.
    pub moments: Option<Value>,
}

#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What was recorded on the way.
    pub records: Records,
    /// Length of a lease.
    pub lease_ms: u64,
    pub events: Vec<Event>,
    /// The jobs, by id.
    pub jobs: BTreeMap<String, Value>,
    pub checkpoints: Vec<Checkpoint>,
    /// Every step that a trainer began, in the order of their lines.
    pub steps: Vec<Step>,
    /// The coordinator's blobs by id; true: its bytes are what the id says.
    pub blobs: BTreeMap<String, bool>,
    /// Files of replicas whose bytes are not what their manifest says: node, checkpoint, file.
    pub wrong_replicas: Vec<(String, String, String)>,
    pub replicas: u64,
    /// Blobs that were found damaged and put aside, on all machines.
    pub quarantined: u64,
    /// Short ids of the checkpoints that agents were told are committed.
    pub told_committed: BTreeSet<String>,
    /// Lines of logs that speak of a panic.
    pub panics: Vec<String>,
}

impl Event {
    /// A text of the change.
    pub fn text(&self, key: &str) -> &str {
        self.change[key].as_str().unwrap_or_default()
    }

    /// A number of the change.
    pub fn number_of(&self, key: &str) -> u64 {
        self.change[key].as_u64().unwrap_or(0)
    }
}

impl Checkpoint {
    /// The blobs of its files.
    pub fn blobs(&self) -> impl Iterator<Item = (&str, &str)> {
        let files = self.manifest["files"].as_array().into_iter().flatten();
        files.filter_map(|file| Some((file["name"].as_str()?, file["blob"].as_str()?)))
    }

    /// The blobs of its files on a node that holds it, by their names there.
    fn blobs_on(&self, node: &str) -> Vec<(&str, &str)> {
        if !self.serving_on.iter().any(|serving| serving == node) {
            return self.blobs().collect();
        }
        let names = self.blobs().filter_map(|(name, blob)| match name {
            "config.json" => Some((name, blob)),
            "model-bf16.safetensors" => Some(("model.safetensors", blob)),
            _ => None,
        });
        names.collect()
    }
}

impl Evidence {
    /// Gathers it. The coordinator must answer; agents should be at rest.
    pub fn gather(site: &Site) -> io::Result<Self> {
        let mut evidence = Self {
            records: site.history.records().clone(),
            lease_ms: site.lease().as_millis() as u64,
            events: events(site)?,
            steps: steps(&site.steps_file())?,
            ..Self::default()
        };
        for job in array(site.must_json(&["jobs"])?) {
            evidence.jobs.insert(job["id"].as_str().unwrap_or_default().to_owned(), job);
        }
        let store = site.coordinator_state().join("blobs");
        evidence.blobs = blobs(&store)?;
        for checkpoint in array(site.must_json(&["checkpoints"])?) {
            evidence.checkpoints.push(checkpoint_of(checkpoint, &store));
        }
        evidence.quarantined += count_files(&store.join("quarantine"), "data");
        for member in site.agents() {
            let state = member.home.join("agent");
            evidence.look_at_replicas(&member.name, &state.join("checkpoints"));
            evidence.quarantined += count_files(&state.join("blobs").join("quarantine"), "data");
            let log = read_log(&site.log(&member.name));
            evidence.told_committed.extend(log.lines().filter_map(committed_in));
            evidence.panics.extend(panics(&member.name, &log));
        }
        evidence.panics.extend(panics("coordinator", &read_log(&site.log("coordinator"))));
        Ok(evidence)
    }

    /// Hashes every file of the replicas that the coordinator takes for ready on `node`.
    fn look_at_replicas(&mut self, node: &str, folder: &Path) {
        for checkpoint in &self.checkpoints {
            if !checkpoint.ready_on.iter().any(|ready| ready == node) {
                continue;
            }
            self.replicas += 1;
            for (name, blob) in checkpoint.blobs_on(node) {
                let right = fs::read(folder.join(&checkpoint.id).join(name))
                    .is_ok_and(|bytes| blob_id(&bytes) == blob);
                if !right {
                    self.wrong_replicas.push((node.to_owned(), checkpoint.id.clone(), name.to_owned()));
                }
            }
        }
    }
}

/// The name that these bytes have as a blob: the digest of their piece manifest, written down here once more.
pub fn blob_id(bytes: &[u8]) -> String {
    let size_bytes = bytes.len() as u64;
    let piece_bytes = size_bytes.div_ceil(PIECES_AIM).next_power_of_two().clamp(PIECE_BYTES.0, PIECE_BYTES.1);
    let mut manifest = blake3::Hasher::new();
    manifest.update(MAGIC).update(&(piece_bytes as u32).to_le_bytes()).update(&size_bytes.to_le_bytes());
    for piece in bytes.chunks(piece_bytes as usize) {
        manifest.update(blake3::hash(piece).as_bytes());
    }
    manifest.finalize().to_string()
}

/// Where the blob called `id` lies in a store.
pub fn blob_path(store: &Path, id: &str) -> PathBuf {
    store.join(&id[..2]).join(format!("{id}.data"))
}

fn events(site: &Site) -> io::Result<Vec<Event>> {
    let typed = site.ask(&["events", "--output", "json"]);
    if typed.code != Some(0) {
        return Err(io::Error::other(format!("no events: {}", typed.stderr)));
    }
    let event = |line: &str| {
        let mut value: Value = serde_json::from_str(line)?;
        Ok(Event {
            number: value["number"].as_u64().unwrap_or(0),
            at_ms: value["at"].as_u64().unwrap_or(0),
            kind: value["kind"].as_str().unwrap_or_default().to_owned(),
            change: value["change"].take(),
        })
    };
    typed.stdout.lines().map(event).collect::<Result<_, serde_json::Error>>().map_err(io::Error::other)
}

fn steps(path: &Path) -> io::Result<Vec<Step>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let step = |line: &str| {
        let value: Value = serde_json::from_str(line)?;
        let number = |key: &str| value[key].as_u64().unwrap_or(0);
        Ok(Step {
            job: value["job"].as_str().unwrap_or_default().to_owned(),
            epoch: number("epoch"),
            process: number("process"),
            step: number("step"),
            wall_ms: number("wall_ms"),
        })
    };
    text.lines().map(step).collect::<Result<_, serde_json::Error>>().map_err(io::Error::other)
}

fn checkpoint_of(mut view: Value, store: &Path) -> Checkpoint {
    let replicas = array(view["replicas"].take());
    let is_ready = |replica: &&Value| replica["state"]["state"] == "ready";
    let ready = replicas.iter().filter(is_ready);
    let serving = ready.clone().filter(|replica| replica["serving_only"] == true);
    let names = |replica: &Value| Some(replica["node_name"].as_str()?.to_owned());
    let mut checkpoint = Checkpoint {
        id: view["id"].as_str().unwrap_or_default().to_owned(),
        manifest: view["manifest"].take(),
        ready_on: ready.filter_map(names).collect(),
        serving_on: serving.filter_map(names).collect(),
        wanted_on: replicas.len(),
        moments: None,
    };
    let optimizer = checkpoint.blobs().find(|(name, _)| name.starts_with("optimizer")).map(|(_, blob)| blob);
    checkpoint.moments = optimizer
        .and_then(|blob| fs::read(blob_path(store, blob)).ok())
        .and_then(|text| serde_json::from_slice(&text).ok());
    checkpoint
}

/// Hashes all of a store.
fn blobs(store: &Path) -> io::Result<BTreeMap<String, bool>> {
    let mut found = BTreeMap::new();
    for shard in fs::read_dir(store)? {
        let shard = shard?;
        if shard.file_name().len() != 2 {
            continue;
        }
        for file in fs::read_dir(shard.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|kind| kind == "data")
                && let Some(id) = path.file_stem().and_then(|stem| stem.to_str())
            {
                found.insert(id.to_owned(), blob_id(&fs::read(&path)?) == id);
            }
        }
    }
    Ok(found)
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

fn count_files(folder: &Path, kind: &str) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|found| found == kind)).count() as u64
}

fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The checkpoint in a line such as `checkpoint committed job=1f3c step=40 checkpoint=9ab3`.
fn committed_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("checkpoint committed")?;
    rest.split_whitespace().find_map(|word| word.strip_prefix("checkpoint=")).map(str::to_owned)
}

fn panics<'a>(who: &'a str, log: &'a str) -> impl Iterator<Item = String> + 'a {
    log.lines().filter(|line| line.contains("panicked at")).map(move |line| format!("{who}: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blobs_name_is_the_one_that_the_house_gives_it() {
        for bytes in [vec![], vec![1; 9], vec![2; 64 << 10], vec![3; (64 << 10) + 1], vec![4; (40 << 20) + 5]]
        {
            let name = hatchery_common::blob::PieceManifest::of_bytes(&bytes).id().to_string();
            assert_eq!(blob_id(&bytes), name, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn an_acknowledgement_is_found_in_a_line_of_a_log() {
        let line = "agent 2026-01-01T00:00:00Z  INFO hatchery_agent::deliver: checkpoint committed job=a step=4 checkpoint=9ab3";
        assert_eq!(committed_in(line).as_deref(), Some("9ab3"));
        assert_eq!(committed_in("agent checkpoint ready checkpoint=9ab3"), None);
    }
}
