//! Telemetry: one line for each event, with the role, also to a second place. The tests are one, because a process speaks
//! in one way.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use hatchery_common::telemetry::{LogFormat, Telemetry};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_are_json_with_the_role_and_the_first_start_holds() {
    let wrong = Telemetry::new("agent").filter(Some("a=b=c".into())).init().unwrap_err();
    assert!(wrong.to_string().starts_with("invalid log filter `a=b=c`"), "{wrong}");
    assert!("xml".parse::<LogFormat>().is_err());

    let (first, second) = (Shared::default(), Shared::default());
    let start = |writer: &Shared| {
        let telemetry = Telemetry::new("agent").format("json".parse().unwrap());
        telemetry.filter(Some("info".into())).also_to(writer.clone()).init()
    };
    start(&first).unwrap();
    start(&second).unwrap();
    tracing::info!(job = 7, "started \"now\"");
    tracing::debug!("not shown");
    let text = String::from_utf8(first.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(lines[0]["role"], "agent");
    assert_eq!(lines[0]["job"], 7);
    assert_eq!(lines[0]["message"], "started \"now\"");
    assert!(second.0.lock().unwrap().is_empty());
}
