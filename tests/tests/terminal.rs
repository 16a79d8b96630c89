//! Rollouts as they are typed in a terminal: bars, Ctrl-C, and lines where bars are not wanted.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use hatchery_tests::{CTRL_C, Fleet, Process, Terminal, corpus};
use rustix::process::Signal;

/// What Ctrl-C says of a rollout that is waited for: that it goes on, how to see it, and how to take it back.
fn check_farewell(fleet: &Fleet, said: &str) {
    let id = fleet.json(&["rollouts"])[0]["id"].as_str().unwrap()[..8].to_owned();
    let farewell = format!(
        "the rollout continues; see it with `hatchery rollouts`, undo it with `hatchery rollback --rollout \
         {id}`"
    );
    assert!(said.split_whitespace().collect::<Vec<_>>().join(" ").contains(&farewell), "{said}");
}

#[test]
fn a_rollout_is_typed_watched_left_and_taken_back() {
    let fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 10);
    let job = fleet.submit(&corpus, 20, 10, &["--name", "first", "--replicate-to", "none"]);
    assert_eq!(fleet.watch_to_end(&job)["phase"], "completed");
    let checkpoints = fleet.json(&["checkpoints", "first"]);
    let id = checkpoints.as_array().unwrap().iter().find(|one| one["manifest"]["step"] == 10).unwrap();
    let id = id["id"].as_str().unwrap()[..12].to_owned();
    // So slowly that at least the node that did not make it takes minutes.
    let slow = ["push", &id, "--activate", "--wait", "--limit-rate", "2kB/s"];

    // Where it gets there, the bars make room for one line.
    let typed = |arguments: &[&str]| Terminal::start(&fleet.command(arguments)).finish();
    let pushed = typed(&["push", "first", "--activate", "--wait"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let last = pushed.stdout.trim_end().lines().last().unwrap();
    assert!(last.ends_with("(step 20) active on 2/2: ada, bob"), "{pushed:?}");

    // In a terminal a bar for each node and one for all; Ctrl-C ends the watching alone.
    let mut terminal = Terminal::start(&fleet.command(&slow));
    terminal.wait_for(&["ada ", "bob ", "all nodes ", "active on ", " of 2", "░"]);
    terminal.press(CTRL_C);
    let left = terminal.finish();
    assert!(terminal.is_painted() && left.code == 130, "{left:?}");
    check_farewell(&fleet, &left.stdout);
    let rollouts = fleet.json(&["rollouts"]);
    assert_eq!((&rollouts[0]["activate"], &rollouts[0]["nodes"]), (&true.into(), &2.into()), "it goes on");

    // Without bars there is a line for each change, and nothing is painted.
    let mut plain = fleet.command(&slow);
    plain.env("NO_COLOR", "1");
    let mut terminal = Terminal::start(&plain);
    let begins = format!("checkpoint {id} on ");
    terminal.wait_for(&[&begins]);
    terminal.press(CTRL_C);
    let left = terminal.finish();
    assert!(!terminal.is_painted() && left.code == 130, "{left:?}");
    check_farewell(&fleet, &left.stdout);
    let mut piped = Process::start(fleet.command(&slow));
    let line = piped.wait_for_stderr(&begins);
    assert!(!line.contains('\x1b'), "{line}");
    piped.signal(Signal::INT);
    assert_eq!(piped.wait().code(), Some(130));
    check_farewell(&fleet, &piped.rest_of_stderr());

    // One without a limit lifts that of the fetch which is under way.
    let fast = typed(&["push", &id, "--activate", "--wait"]);
    assert_eq!(fast.code, 0, "{fast:?}");
    assert!(fast.stdout.contains("(step 10) active on 2/2: ada, bob"), "{fast:?}");

    let listed = typed(&["rollouts"]);
    assert_eq!((listed.code, listed.stdout.matches(&id).count()), (0, 4), "{listed:?}");
    for title in ["ROLLOUT", "CHECKPOINT", "READY", "ACTIVE", "2/2", "at most 2.0 kB/s"] {
        assert!(listed.stdout.contains(title), "{title}: {listed:?}");
    }
    for _ in 0..4 {
        let back = typed(&["rollback", "first"]);
        assert_eq!(back.code, 0, "{back:?}");
        assert!(
            back.stdout.contains(&format!("undid the rollout of checkpoint {id} (step 10) of first")),
            "{back:?}"
        );
    }
    let back = typed(&["rollback", "first"]);
    assert!(back.stdout.contains("(step 20) of first"), "{back:?}");
    assert!(back.stdout.find("ada: no checkpoint") < back.stdout.find("bob: no checkpoint"), "{back:?}");
    let refused = typed(&["rollback", "first"]);
    assert!(refused.code == 5 && refused.stdout.contains("push CHECKPOINT --activate"), "{refused:?}");
    assert_eq!(fleet.json(&["rollouts"]).as_array().unwrap().len(), 0);
    assert_eq!(fleet.json(&["rollouts", "--all"]).as_array().unwrap().len(), 5, "the history shows them");
    assert_eq!(typed(&["push", &id, "--limit-rate", "fast"]).code, 2);
    assert_eq!(typed(&["push", "nothing-like-it", "--wait"]).code, 4);
}
