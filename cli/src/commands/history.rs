//! `logs`, `events`: what was written and what happened.

use std::pin::pin;

use futures::StreamExt;
use serde_json::json;

use crate::{
    args::{EventsArgs, LogsArgs},
    exit::Outcome,
    home::Home,
    output::{self, Output},
};

/// `hatchery logs`.
pub(crate) async fn logs(args: LogsArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let mut chunks = pin!(fleet.logs(&args.job, args.follow).await?);
    let mut last_epoch = None;
    while let Some(chunk) = chunks.next().await {
        let (epoch, text) = chunk?;
        match output {
            Output::Json => {
                let value = json!({ "epoch": epoch, "text": String::from_utf8_lossy(&text) });
                output.print_line(&value, ToString::to_string)?;
            }
            Output::Text => {
                if last_epoch.replace(epoch).is_some_and(|last| last != epoch) {
                    output::line(&format!("--- attempt {epoch} ---"))?;
                }
                output::raw(&text)?;
            }
        }
    }
    Ok(())
}

/// `hatchery events`.
pub(crate) async fn events(args: EventsArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let mut events = pin!(fleet.events(args.after, args.follow, args.job.as_deref()).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        output.print_line(&event, |event| format!("{:>6}  {}  {}", event.number, event.at, event.text))?;
    }
    Ok(())
}
