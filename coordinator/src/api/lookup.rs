//! From what people type to what is meant: ids, unique prefixes of ids, names, and `latest`.

use std::{fmt::Display, str::FromStr};

use hatchery_common::{
    field::nearest_key,
    id::{CertificateId, CheckpointId, NodeId, RolloutId},
};
use hatchery_scheduler::{Cluster, Job};

/// Shortest prefix of an id that is taken for one.
const PREFIX_LEN_MIN: usize = 4;
/// An error lists so many candidates.
const CANDIDATES_MAX: usize = 8;
/// The newest job, or the newest checkpoint.
const LATEST: &str = "latest";
/// The checkpoint of the lowest validation loss.
const BEST: &str = "best";

/// Why nothing was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    /// Nothing is called so.
    #[error("there is no {what} `{given}`{hint}")]
    NotFound {
        /// `job`, `node`, `checkpoint`, `certificate`.
        what: &'static str,
        given: String,
        /// What else might be meant; empty or half a sentence.
        hint: String,
    },
    /// More than one is called so.
    #[error("`{given}` matches {count} {what}s: {candidates}; give more of the id")]
    Ambiguous { what: &'static str, given: String, count: usize, candidates: String },
}

/// One thing that might be meant.
#[derive(Clone, Copy)]
struct Candidate<'a, T> {
    id: T,
    /// Empty where things have no names.
    name: &'a str,
}

/// The job meant by an id, a prefix, a name or `latest`.
pub(crate) fn job<'a>(cluster: &'a Cluster, given: &str) -> Result<&'a Job, LookupError> {
    if given == LATEST {
        let newest = cluster.jobs.values().max_by_key(|job| (job.submitted_at, job.id));
        return newest.ok_or_else(|| not_found("job", given, "; no job was submitted yet"));
    }
    let candidates = cluster.jobs.values().map(|job| Candidate { id: job.id, name: job.spec.name.as_str() });
    let id = find("job", given, |id| cluster.jobs.contains_key(id), candidates)?;
    Ok(&cluster.jobs[&id])
}

/// The node meant by an id, a prefix or a name.
pub(crate) fn node(cluster: &Cluster, given: &str) -> Result<NodeId, LookupError> {
    let candidates = cluster.nodes.values().map(|node| Candidate { id: node.id, name: node.name.as_str() });
    find("node", given, |id| cluster.nodes.contains_key(id), candidates)
}

/// What somebody asks for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'a> {
    Checkpoint(CheckpointId),
    /// Whatever is active of a job.
    Job(&'a Job),
}

/// The checkpoint meant by an id, a prefix, a job (its newest), `JOB:best`, `JOB:latest`, `latest` (the newest of all) or
/// `best` (the best of that one's job, since losses of different jobs say nothing about each other).
pub(crate) fn checkpoint(cluster: &Cluster, given: &str) -> Result<CheckpointId, LookupError> {
    match asked(cluster, given)? {
        Asked::Checkpoint(id) => Ok(id),
        Asked::Job(job) => newest(job, given),
    }
}

/// The same, but that a job stays a job.
pub(crate) fn asked<'a>(cluster: &'a Cluster, given: &str) -> Result<Asked<'a>, LookupError> {
    if let Some((given_job, which)) = given.rsplit_once(':') {
        let job = job(cluster, given_job)?;
        return match which {
            BEST => best(job, given).map(Asked::Checkpoint),
            LATEST => newest(job, given).map(Asked::Checkpoint),
            _ => {
                let hint = format!("; a job has `{given_job}:{BEST}` and `{given_job}:{LATEST}`");
                Err(not_found("checkpoint", given, &hint))
            }
        };
    }
    if given == BEST {
        let latest = cluster.checkpoints.get(&checkpoint(cluster, LATEST)?);
        let job = latest.and_then(|latest| cluster.jobs.get(&latest.manifest.job));
        let job = job.ok_or_else(|| not_found("checkpoint", given, "; its job is unknown"))?;
        return best(job, given).map(Asked::Checkpoint);
    }
    if given == LATEST {
        let newest = cluster.checkpoints.iter().max_by_key(|(_, one)| (one.committed_at, one.manifest.step));
        return newest
            .map(|(id, _)| Asked::Checkpoint(*id))
            .ok_or_else(|| not_found("checkpoint", given, "; no checkpoint was committed yet"));
    }
    let candidates = cluster.checkpoints.keys().map(|id| Candidate { id: *id, name: "" });
    match find("checkpoint", given, |id| cluster.checkpoints.contains_key(id), candidates) {
        Err(LookupError::NotFound { .. }) => {}
        found => return found.map(Asked::Checkpoint),
    }
    match job(cluster, given) {
        Ok(job) => Ok(Asked::Job(job)),
        Err(LookupError::NotFound { hint, .. }) => {
            Err(LookupError::NotFound { what: "checkpoint or job", given: given.to_owned(), hint })
        }
        Err(ambiguous) => Err(ambiguous),
    }
}

fn newest(job: &Job, given: &str) -> Result<CheckpointId, LookupError> {
    job.checkpoint.ok_or_else(|| {
        not_found("checkpoint", given, &format!("; the job {} has not committed one yet", job.spec.name))
    })
}

fn best(job: &Job, given: &str) -> Result<CheckpointId, LookupError> {
    job.best.ok_or_else(|| {
        let hint = format!("; no checkpoint of the job {} was validated at its own step yet", job.spec.name);
        not_found("checkpoint", given, &hint)
    })
}

/// The certificate meant by an id or a prefix.
pub(crate) fn certificate(cluster: &Cluster, given: &str) -> Result<CertificateId, LookupError> {
    let candidates = cluster.certificates.keys().map(|id| Candidate { id: *id, name: "" });
    find("certificate", given, |id| cluster.certificates.contains_key(id), candidates)
}

/// The rollout meant by an id or a prefix.
pub(crate) fn rollout(cluster: &Cluster, given: &str) -> Result<RolloutId, LookupError> {
    let candidates = cluster.rollouts.keys().map(|id| Candidate { id: *id, name: "" });
    find("rollout", given, |id| cluster.rollouts.contains_key(id), candidates)
}

/// The whole id comes first, then a name, then a prefix. What else might be meant is looked for only on a miss.
fn find<'a, T: Copy + Display + FromStr>(
    what: &'static str,
    given: &str,
    is_there: impl Fn(&T) -> bool,
    candidates: impl Iterator<Item = Candidate<'a, T>> + Clone,
) -> Result<T, LookupError> {
    let wanted = given.to_ascii_lowercase();
    if let Some(id) = wanted.parse().ok().filter(is_there) {
        return Ok(id);
    }
    let is_named = |candidate: &Candidate<'_, T>| !candidate.name.is_empty() && candidate.name == given;
    let mut found: Vec<_> = candidates.clone().filter(is_named).collect();
    if found.is_empty() && wanted.len() >= PREFIX_LEN_MIN {
        let is_prefixed = |candidate: &Candidate<'_, T>| candidate.id.to_string().starts_with(&wanted);
        found = candidates.clone().filter(is_prefixed).collect();
    }
    match found[..] {
        [one] => Ok(one.id),
        [] => {
            let names = candidates.map(|candidate| candidate.name).filter(|name| !name.is_empty());
            let near = nearest_key(given, names);
            Err(not_found(
                what,
                given,
                &near.map_or_else(String::new, |near| format!("; did you mean `{near}`?")),
            ))
        }
        _ => {
            let mut shown: Vec<String> = found.iter().take(CANDIDATES_MAX).map(Candidate::shown).collect();
            if found.len() > shown.len() {
                shown.push("...".to_owned());
            }
            let (given, count, candidates) = (given.to_owned(), found.len(), shown.join(", "));
            Err(LookupError::Ambiguous { what, given, count, candidates })
        }
    }
}

impl<T: Display> Candidate<'_, T> {
    fn shown(&self) -> String {
        const SHOWN_LEN: usize = 12;
        let id = self.id.to_string();
        let id = &id[..SHOWN_LEN];
        if self.name.is_empty() { id.to_owned() } else { format!("{id} ({})", self.name) }
    }
}

fn not_found(what: &'static str, given: &str, hint: &str) -> LookupError {
    LookupError::NotFound { what, given: given.to_owned(), hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use hatchery_common::id::JobId;

    use super::*;

    fn find_among(given: &str, all: &[(&str, &str)]) -> Result<usize, LookupError> {
        let id = |id: &str| format!("{id:0<32}").parse::<JobId>().unwrap();
        let candidates = all.iter().map(|(one, name)| Candidate { id: id(one), name });
        let position = |found: &JobId| all.iter().position(|(one, _)| id(one) == *found);
        find("job", given, |one| position(one).is_some(), candidates).map(|found| position(&found).unwrap())
    }

    #[test]
    fn ids_prefixes_and_names_are_found() {
        let all = [("abcd1", "one"), ("abcd2", "two"), ("abff", "two"), ("0123", "abcd")];
        assert_eq!(find_among("abcd1", &all), Ok(0));
        assert_eq!(find_among("ABFF", &all), Ok(2));
        assert_eq!(find_among("one", &all), Ok(0));
        assert_eq!(find_among("abcd", &all), Ok(3), "a name comes before a prefix");
        assert!(matches!(find_among("two", &all), Err(LookupError::Ambiguous { count: 2, .. })));
        assert!(matches!(find_among("abc", &all), Err(LookupError::NotFound { .. })));
    }

    #[test]
    fn errors_list_what_could_be_meant() {
        let all = [("abcd1", "first"), ("abcd2", "second")];
        let error = find_among("abcd", &all).unwrap_err().to_string();
        assert_eq!(
            error,
            "`abcd` matches 2 jobs: abcd10000000 (first), abcd20000000 (second); give more of the id"
        );
        let error = find_among("secnd", &all).unwrap_err().to_string();
        assert_eq!(error, "there is no job `secnd`; did you mean `second`?");
    }
}
