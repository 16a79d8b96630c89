//! The tests notice: each rule that Hatchery keeps is broken on purpose, and the checks of chaos turn red. The same
//! scenario in Hatchery as it is leaves them green.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::io;

use hatchery_tests::chaos::{
    check::{self, Finding},
    clients::{Work, is_terminal, submit_directly},
    dice::Dice,
    evidence::{Evidence, blob_path},
    faults::flip_bit,
    history::now_ms,
    member::Member,
    proxy::Mode,
    site::{Site, SiteSettings},
};
use serde_json::Value;

/// The shortest lease, so that a job moves soon.
const LEASE_SECS: u64 = 2;

/// What is found against Hatchery after a scenario, with `points` armed in every process.
type Scenario = fn(points: &str) -> io::Result<Vec<Finding>>;

/// Green in Hatchery as it is, and red against `invariant` in one that is broken by `mutant`.
fn only_the_mutant_is_found(scenario: Scenario, mutant: &str, invariant: &str) {
    let sound = scenario("").unwrap();
    assert_eq!(sound, [], "Hatchery as it is");
    let broken = scenario(&format!("{mutant}=return")).unwrap();
    assert!(
        broken.iter().any(|finding| finding.invariant == invariant),
        "{mutant} breaks {invariant}, and only this was found: {broken:#?}"
    );
}

#[test]
fn an_old_epoch_that_is_accepted() {
    only_the_mutant_is_found(a_fenced_agent_delivers, "mutant::fencing", "I3");
}

#[test]
fn a_trainer_that_outstays_its_lease() {
    only_the_mutant_is_found(a_cut_off_agent_trains, "mutant::lease_margin", "I6");
}

#[test]
fn one_request_that_makes_two_jobs() {
    only_the_mutant_is_found(a_request_is_repeated, "mutant::request_deduplication", "I2");
}

#[test]
fn an_answer_before_the_commit() {
    only_the_mutant_is_found(a_coordinator_dies_after_its_answer, "mutant::commit_order", "I1");
}

#[test]
fn an_answer_before_the_sync() {
    only_the_mutant_is_found(no_file_can_be_synced, "mutant::fsync_order", "I7");
}

#[test]
fn bytes_that_nobody_hashes() {
    only_the_mutant_is_found(a_bit_flips, "mutant::hash_check", "I8");
}

fn site(agents: usize, points: &str) -> io::Result<Site> {
    Site::build(SiteSettings { lease_secs: LEASE_SECS, agents, points: points.to_owned() })
}

fn findings(site: &Site) -> io::Result<Vec<Finding>> {
    Ok(check::all(&Evidence::gather(site)?))
}

fn submit(site: &Site, work: &Work) -> io::Result<String> {
    let submission = submit_directly(site, work, &Dice::new(now_ms()).uuid())?;
    submission.job.clone().ok_or_else(|| io::Error::other(format!("not submitted: {submission:?}")))
}

fn wait_for_end(site: &Site, job: &str) -> io::Result<Value> {
    site.wait_for_job(job, "ends", |view| is_terminal(view["phase"].as_str().unwrap_or_default()))
}

/// Ends what would otherwise wait for ever, in a fleet without agents.
fn cancel_all(site: &Site) -> io::Result<()> {
    for job in site.must_json(&["jobs"])?.as_array().into_iter().flatten() {
        site.ask(&["cancel", job["id"].as_str().unwrap_or_default()]);
    }
    Ok(())
}

/// A job that trains, and the agent that has it.
fn a_job_that_trains<'a>(site: &'a Site, work: &Work) -> io::Result<(String, &'a Member)> {
    let job = submit(site, work)?;
    let view = site.wait_for_job(&job, "makes steps", |view| view["progress"]["step"].as_u64() > Some(5))?;
    Ok((job, site.agent(view["node"].as_str().unwrap_or_default())?))
}

/// Its agent is cut off, and the job goes on elsewhere.
fn cut_off_until_the_job_has_moved(site: &Site, job: &str, member: &Member) -> io::Result<()> {
    member.proxy.set(Mode::Blackhole);
    site.wait_for_job(job, "goes on elsewhere", |view| {
        view["epoch"].as_u64() > Some(1) && view["progress"]["step"].as_u64() > Some(5)
    })?;
    Ok(())
}

/// An agent that has lost its lease, and clings to what it was told to forget, delivers what it made under it.
fn a_fenced_agent_delivers(points: &str) -> io::Result<Vec<Finding>> {
    let site = site(2, &format!("agent::forgets_nothing=return;{points}"))?;
    // Long enough to run still when the old agent is back, and without a checkpoint but those of its ends.
    let work = Work::steady("fenced", 500, 1000);
    let (job, member) = a_job_that_trains(&site, &work)?;
    cut_off_until_the_job_has_moved(&site, &job, member)?;
    member.proxy.set(Mode::Pass);
    member.proxy.reset_connections();
    member.wait_for_line(&["does not want this checkpoint", "checkpoint committed"])?;
    wait_for_end(&site, &job)?;
    findings(&site)
}

/// An agent that hears nothing any more stops its trainer before the job is given away.
fn a_cut_off_agent_trains(points: &str) -> io::Result<Vec<Finding>> {
    let site = site(2, points)?;
    let (job, member) = a_job_that_trains(&site, &Work::steady("cut-off", 500, 50))?;
    cut_off_until_the_job_has_moved(&site, &job, member)?;
    member.proxy.set(Mode::Pass);
    member.proxy.reset_connections();
    wait_for_end(&site, &job)?;
    findings(&site)
}

/// A person's command is sent twice.
fn a_request_is_repeated(points: &str) -> io::Result<Vec<Finding>> {
    let site = site(0, points)?;
    let (work, request) = (Work::steady("twice", 20, 10), Dice::new(1).uuid());
    for _ in 0..2 {
        submit_directly(&site, &work, &request)?;
    }
    let other = Work { name: "another".to_owned(), ..work };
    submit_directly(&site, &other, &request)?;
    cancel_all(&site)?;
    findings(&site)
}

/// The power goes as soon as a submission was answered.
fn a_coordinator_dies_after_its_answer(points: &str) -> io::Result<Vec<Finding>> {
    let site = site(0, points)?;
    submit(&site, &Work::steady("answered", 20, 10))?;
    site.kill_coordinator();
    site.start_coordinator("", &[])?;
    cancel_all(&site)?;
    findings(&site)
}

/// The disk takes everything, and brings nothing to where it lasts.
fn no_file_can_be_synced(points: &str) -> io::Result<Vec<Finding>> {
    let site = site(0, points)?;
    let work = Work { own_text: true, ..Work::steady("unsynced", 20, 10) };
    site.kill_coordinator();
    site.start_coordinator("durable::before_sync=return", &[])?;
    let from_ms = now_ms();
    let request = Dice::new(1).uuid();
    submit_directly(&site, &work, &request)?;
    site.history.records().unsynced_ms.push((from_ms, now_ms()));
    site.kill_coordinator();
    site.start_coordinator("", &[])?;
    // What was refused for the disk alone is taken when the disk is well.
    assert!(submit_directly(&site, &work, &request)?.is_acknowledged());
    cancel_all(&site)?;
    findings(&site)
}

/// A bit flips on the coordinator's disk, and a machine that has lost its own wants that blob.
fn a_bit_flips(points: &str) -> io::Result<Vec<Finding>> {
    let site = site(2, points)?;
    // Of several pieces: one alone is hashed once more when it gets its name.
    let job = submit(&site, &Work { width: 32, ..Work::steady("flipped", 20, 20) })?;
    wait_for_end(&site, &job)?;
    for member in site.agents() {
        member.wait_for_line(&["checkpoint ready"])?;
    }
    let checkpoints = site.must_json(&["checkpoints"])?;
    let files = checkpoints[0]["manifest"]["files"].as_array().cloned().unwrap_or_default();
    let model = files.iter().find(|file| file["name"] == "model.safetensors").unwrap();
    let blob = model["blob"].as_str().unwrap().to_owned();
    site.kill_coordinator();
    flip_bit(&blob_path(&site.coordinator_state().join("blobs"), &blob), &mut Dice::new(1))?;
    site.history.records().flipped.push(blob.clone());
    site.start_coordinator("", &[])?;
    let [lost, holder] = site.agents() else { return Err(io::Error::other("two agents were asked for")) };
    // The other is away while the coordinator is asked; else all of it might come from there, and nobody would have
    // read the damaged copy.
    holder.kill();
    lost.kill();
    lost.lose_disk()?;
    site.start_agent(lost, "")?;
    let path = blob_path(&site.coordinator_state().join("blobs"), &blob);
    site.wait_for("the damage is found, or taken for good", || {
        let checkpoints = site.ask(&["checkpoints", "--output", "json"]).json()?;
        let taken = checkpoints[0]["replicas"].as_array()?.iter().any(|one| {
            one["node_name"].as_str() == Some(lost.name.as_str()) && one["state"]["state"] == "ready"
        });
        (!path.exists() || taken).then_some(())
    })?;
    site.start_agent(holder, "")?;
    site.wait_for("both hold it", || {
        let checkpoints = site.ask(&["checkpoints", "--output", "json"]).json()?;
        let mut replicas = checkpoints[0]["replicas"].as_array()?.iter();
        replicas.all(|one| one["state"]["state"] == "ready").then_some(())
    })?;
    // Whoever has fetched it from the other asks whether the coordinator has it still.
    site.wait_for("the coordinator has it again", || path.exists().then_some(()))?;
    findings(&site)
}
