//! Machines and people joining and leaving.

use hatchery_tests::{Fleet, Process, run};

#[test]
fn a_second_machine_joins_by_a_string_that_works_once() {
    let mut fleet = Fleet::with_agents(15, &["ada"]);
    let join = fleet.token();
    let home = fleet.agent_home("bob");
    let mut bob = Process::start(
        fleet.command_in(&home, &["agent", "--join", &join, "--name", "bob", "--label", "room=attic"]),
    );
    bob.wait_for_stderr("joined as bob");
    let node = fleet.wait_for_node("bob", "connected");
    assert_eq!(node["labels"]["room"], "attic");
    assert!(node["inventory"]["cores"].as_u64().unwrap() > 0);

    let again = run(fleet.command_in(&fleet.agent_home("eve"), &["agent", "--join", &join, "--name", "eve"]));
    assert_eq!(again.code, 5, "{again:?}");
    assert!(again.stderr.contains("used or expired"), "{}", again.stderr);

    // A string whose authority is another one: the machine says nothing to a coordinator that it does not know.
    let other = Fleet::start(15);
    let stranger = other.token();
    let mut damaged = stranger.clone();
    damaged.replace_range(damaged.len() - 3.., "zzz");
    let typo = run(fleet.command_in(&fleet.agent_home("eve"), &["agent", "--join", &damaged]));
    assert_eq!(typo.code, 2, "{typo:?}");

    // Taken out, it is refused from then on.
    assert_eq!(fleet.run(&["node", "bob", "--remove"]).code, 0);
    let left = fleet.json(&["nodes"]);
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    fleet.start_agent("ada-2");
    fleet.wait_for_node("ada-2", "connected");
}

#[test]
fn a_person_elsewhere_logs_in_and_looks_or_acts() {
    let fleet = Fleet::start(15);
    let (viewer_home, operator_home) = (fleet.agent_home("viewer"), fleet.agent_home("operator"));
    for (scope, home) in [("viewer", &viewer_home), ("operator", &operator_home)] {
        let token = fleet.json(&["token", "create", "--scope", scope]);
        let join = token["join_string"].as_str().unwrap();
        let login = run(fleet.command_in(home, &["login", join, "--name", scope]));
        assert_eq!(login.code, 0, "{login:?}");
        assert_eq!(run(fleet.command_in(home, &["nodes"])).code, 0);
    }
    let refused = run(fleet.command_in(&viewer_home, &["token", "create"]));
    assert_eq!(refused.code, 5, "a viewer changes nothing: {refused:?}");
    assert_eq!(run(fleet.command_in(&operator_home, &["token", "create"])).code, 0);

    let certificates = fleet.json(&["certificate", "list"]);
    let operator = certificates.as_array().unwrap().iter().find(|c| c["name"] == "operator").unwrap();
    assert_eq!(fleet.run(&["certificate", "revoke", operator["id"].as_str().unwrap()]).code, 0);
    let revoked = run(fleet.command_in(&operator_home, &["nodes"]));
    assert!(revoked.code == 5 && revoked.stderr.contains("revoked"), "{revoked:?}");
}
