mod cases;
mod fetch;
mod links;
mod simulation;
use cases::Case;
use simulation::{Policy, Tuning, simulate};
fn main() {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let tuning = Tuning { asks_per_parent: args[0], asks_at_once: args[1], sends_at_once: args[2], sends_at_once_source: args[3] };
    for n in [4, 8, 16, 64] {
        for size in [13_000_000, 100_000_000] {
            let case = Case::equal(n, size);
            for policy in [Policy::House(tuning), Policy::Star, Policy::Chain, Policy::Random] {
                if n > 16 && !matches!(policy, Policy::House(_)) { continue }
                let t = std::time::Instant::now();
                let mut worst = 0.0_f64; let mut src: f64 = 0.0; let mut dup = 0; let mut over = 0; let mut mean: f64 = 0.0;
                for seed in 0..3 {
                    let o = simulate(&case, policy, seed);
                    let last = o.done_secs[1..].iter().map(|d| d.unwrap_or(f64::INFINITY)).fold(0.0, f64::max);
                    worst = worst.max(last / case.floor_secs());
                    mean = o.done_secs[1..].iter().map(|d| d.unwrap_or(f64::INFINITY)).sum::<f64>() / n as f64 / case.floor_secs();
                    src = src.max(o.sent_bytes[0] / size as f64); dup += o.duplicates; over = over.max(o.slots_over_max);
                }
                println!("{:28} {:60} last {worst:.3} mean {mean:.3} source {src:.3} dup {dup} over {over} ({:.2}s)", case.name, format!("{policy:?}").chars().take(6).collect::<String>(), t.elapsed().as_secs_f64());
            }
        }
    }
}
