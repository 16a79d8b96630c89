//! A coordinator and two agents on this machine, as a user would start them.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use hatchery_test_support::{Fleet, Interrupt};
use serde_json::Value;

use crate::cargo::Binaries;

pub(crate) const NODES: [&str; 2] = ["alder", "birch"];

/// What runs, and who looks at it.
pub(crate) struct Demo {
    pub(crate) fleet: Fleet<'static>,
    interrupt: Interrupt,
}

impl Demo {
    /// Starts everything below `folder` and waits until both nodes are there.
    pub(crate) fn start(binaries: &Binaries, folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let mut fleet = Fleet::new(folder, binaries.hatchery.clone(), interrupt);
        let trainer = binaries.trainer.display().to_string();
        fleet.start_coordinator(&[], &[])?;
        for node in NODES {
            fleet.start_agent(node, &[], &[("HATCHERY_TRAINER", &trainer)])?;
        }
        fleet.wait_for_nodes(NODES.len())?;
        Ok(Self { fleet, interrupt: interrupt.clone() })
    }

    /// A `hatchery` command as the person types it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.fleet.command(arguments)
    }

    /// Whether the demo is to end.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupt.check().is_err()
    }

    /// Runs a command with the terminal as its own; it must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.interrupt.run(&mut self.command(arguments))?;
        if !status.success() {
            bail!("`hatchery {}` failed ({status})", arguments[0]);
        }
        Ok(())
    }

    /// Runs a command and reads the JSON that it prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.fleet.json(arguments)
    }
}
