mod cases;
mod fetch;
mod links;
mod report;
mod simulation;
use cases::Case;
use report::{Row, Table};
fn main() {
    let rows: Vec<Row> = Case::all().iter().map(|case| Row::of(case, 5, true)).collect();
    print!("{}", Table(&rows));
}
