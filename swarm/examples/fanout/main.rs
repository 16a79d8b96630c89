mod cases;
mod fetch;
mod links;
mod report;
mod simulation;
use cases::Case;
use simulation::{simulate,Policy};
use report::{Row, Table};
fn main() {
    if let Some(n) = std::env::args().nth(2) {
        for size in [13_000_000, 100_000_000] {
        let t = std::time::Instant::now();
        let case = Case::equal(n.parse().unwrap(), size);
        print!("{}", Table(&[Row::of(&case, 1, false)]));
        println!("{:?} {}", t.elapsed(), std::fs::read_to_string("/proc/self/status").unwrap().lines().find(|l| l.starts_with("VmHWM")).unwrap());
        }
        return;
    }
    if std::env::args().len() > 1 {
        for case in Case::all().iter().filter(|c| c.name.starts_with("uplinks") || c.name.starts_with("4 of")) {
            let o = simulate(case, Policy::House, 1);
            let floor = case.floor_secs();
            println!("{} {:?} dups {}", case.name, o.done_secs.iter().map(|d| d.map(|d| (100.0 * d / floor) as i64)).collect::<Vec<_>>(), o.duplicates);
            println!("   use of uplinks until the floor: {:?}", o.sent_bytes.iter().zip(&case.nodes).map(|(s, l)| (100.0 * s / l.up / floor) as i64).collect::<Vec<_>>());
        }
        return;
    }
    let rows: Vec<Row> = Case::all().iter().map(|case| Row::of(case, 5, true)).collect();
    print!("{}", Table(&rows));
}
