//! The goals of the fan-out, in a simulation.

use hatchery_bench_swarm::{
    cases::{Case, Incident, LARGE_BYTES, MBIT, SMALL_BYTES, SOURCE, When},
    simulation::{Outcome, Policy, simulate},
};
use hatchery_swarm::Random;

const SEEDS: u64 = 3;
/// What was left after the source's death was only at nodes that nobody was to fetch from.
const FAILED_ONCE: u64 = 282;

/// The last end of each group and the mean, by the floor; all of a group must have come to their end.
fn ratios(case: &Case, outcome: &Outcome) -> Vec<(f64, f64)> {
    let ratios = case.groups().into_iter().map(|group| {
        let ends: Vec<f64> = (group.receivers.iter())
            .map(|&node| {
                outcome.done_secs[node].unwrap_or_else(|| panic!("{}: {node} never ended", case.name))
            })
            .collect();
        let (last, sum) = (ends.iter().copied().fold(0.0, f64::max), ends.iter().sum::<f64>());
        (last / group.floor_secs, sum / ends.len() as f64 / group.floor_secs)
    });
    ratios.collect()
}

/// Runs a case of the bench by its name, under some seeds.
fn run(name: &str, size_bytes: u64, check: impl Fn(&Case, &Outcome, &[(f64, f64)])) {
    let cases: Vec<Case> =
        Case::all().into_iter().filter(|case| case.name == name && case.size_bytes == size_bytes).collect();
    assert!(!cases.is_empty(), "there is no case called {name}");
    for case in cases {
        for seed in 0..SEEDS {
            let outcome = simulate(&case, Policy::House, seed);
            assert_eq!(outcome.slots_over_max, 0, "{name}: more children than upload slots");
            check(&case, &outcome, &ratios(&case, &outcome));
        }
    }
}

#[test]
fn equal_links_come_near_the_floor() {
    for (size_bytes, last_max) in [(SMALL_BYTES, 1.25), (LARGE_BYTES, 1.10)] {
        run("equal links", size_bytes, |case, outcome, ratios| {
            let (last, copies) = (ratios[0].0, outcome.sent_bytes[SOURCE] / size_bytes as f64);
            assert!(last <= last_max, "N = {}: {last}", case.nodes.len() - 1);
            assert!(copies <= 1.1, "the source sent {copies} copies");
        });
    }
}

#[test]
fn a_slow_node_hurts_nobody() {
    for name in ["one at a quarter of the rate", "one at a quarter of the rate, known"] {
        for size_bytes in [SMALL_BYTES, LARGE_BYTES] {
            run(name, size_bytes, |_, _, ratios| {
                assert!(ratios[0].1 <= 1.15, "the others' mean is {}", ratios[0].1);
                assert!(ratios[1].0 <= 1.10, "it itself took {}", ratios[1].0);
            });
        }
    }
}

#[test]
fn a_death_adds_little() {
    let equal = Case::equal(8, LARGE_BYTES);
    let whole = (0..SEEDS).map(|seed| ratios(&equal, &simulate(&equal, Policy::House, seed))[0].0);
    let whole = whole.fold(f64::INFINITY, f64::min);
    for name in ["one dies at half", "one falls silent at half", "the source dies after one copy"] {
        run(name, LARGE_BYTES, |_, _, ratios| {
            assert!(ratios[0].0 <= 1.1 * whole, "{name}: {} instead of {whole}", ratios[0].0);
        });
    }
    run("one joins at half", LARGE_BYTES, |_, _, ratios| {
        assert!(ratios[0].0 <= 1.1 * whole && ratios[1].0 <= 1.1, "{ratios:?}");
    });
}

#[test]
fn wrong_bytes_are_refused_and_cost_little() {
    run("one flips bytes", LARGE_BYTES, |_, outcome, ratios| {
        assert!(outcome.refused > 0, "nobody was sent a wrong byte");
        // Each receiver finds out for itself at most once, but for what is on its way then.
        assert!(outcome.refused <= 2 * 7, "{} wrong pieces", outcome.refused);
        assert!(ratios[0].0 <= 1.25, "{ratios:?}");
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let case = Case::equal(8, SMALL_BYTES);
    let [one, same, other] = [1, 1, 2].map(|seed| simulate(&case, Policy::House, seed).done_secs);
    assert_eq!(one, same);
    assert_ne!(one, other);
}

/// A fleet of any kind, to which things happen that leave one copy within reach.
fn wild(random: &mut Random) -> Case {
    let receivers = 2 + random.below(24);
    let size_bytes = 1 + random.below(20_000_000) as u64;
    let mut case = Case { name: "wild".to_owned(), ..Case::equal(receivers, size_bytes) };
    case.rates_are_known = random.below(2) == 0;
    let source_dies = random.below(4) == 0;
    for (node, link) in case.nodes.iter_mut().enumerate() {
        let mut rate = || MBIT * 10_f64.powf(1.0 + random.below(1001) as f64 / 1000.0);
        (link.up, link.down) = (rate(), rate());
        link.can_be_dialled = node == SOURCE || source_dies || random.below(4) > 0;
    }
    if source_dies {
        // What only one node has must not be lost then.
        case.incidents.push((When::OneCopyIsOut, Incident::Dies(SOURCE)));
        return case;
    }
    case.flipping = (random.below(3) == 0).then(|| 1 + random.below(receivers));
    for node in 1..=receivers {
        let when = When::AtFloorShare(random.below(1000) as f64 / 1000.0);
        match random.below(10) {
            0 => case.incidents.push((when, Incident::Dies(node))),
            1 => case.incidents.push((when, Incident::Stops(node))),
            2 => case.incidents.push((when, Incident::Joins(node))),
            _ => {}
        }
    }
    case
}

/// Fleets of all kinds, with whatever may happen to them as long as one copy can be reached.
#[test]
fn everybody_ends_complete_while_a_copy_can_be_reached() {
    for seed in (0..100).chain([FAILED_ONCE]) {
        let case = wild(&mut Random::new(seed));
        let outcome = simulate(&case, Policy::House, seed);
        for group in case.groups() {
            for node in group.receivers {
                assert!(outcome.done_secs[node].is_some(), "seed {seed}: {node} never ended in {case:?}");
            }
        }
        assert_eq!(outcome.slots_over_max, 0, "seed {seed}");
    }
}
