//! The pages keep to the command line and to the settings: both references are written from the code, and each command that
//! a page shows is one.

use clap::{Command, CommandFactory, error::ErrorKind};
use hatchery_agent::AgentSettings;
use hatchery_coordinator::CoordinatorSettings;
use hatchery_docs::{Source, assert_commands_parse, assert_generated, commands_of, tables};

use crate::args::Cli;

const COMMAND_LINE_HEAD: &str = "\
# The command line

Written from the code by `cargo xtask docs`. `hatchery help COMMAND` and `hatchery COMMAND --help` print the same.
";

const SETTINGS_HEAD: &str = "\
# Settings

Written from the code by `cargo xtask docs`. [Settings](../guide/settings.md) says where they come from and how to write them.
";

/// Columns of the help that the reference shows.
const WIDTH: usize = 110;

#[test]
fn the_reference_of_the_command_line_is_up_to_date() {
    let mut command = plain(Cli::command()).term_width(WIDTH);
    command.build();
    let mut text = COMMAND_LINE_HEAD.to_owned();
    write_help(&mut text, &mut command);
    assert_generated("docs/reference/command-line.md", &text);
}

#[test]
fn the_reference_of_settings_is_up_to_date() {
    let coordinator = serde_json::to_value(CoordinatorSettings::default()).expect("settings are JSON");
    let mut agent = serde_json::to_value(AgentSettings::default()).expect("settings are JSON");
    // It depends on the account; the command line sets it to a folder in Hatchery's home.
    agent["state"] = "~/.hatchery/agent".into();
    let mut text = SETTINGS_HEAD.to_owned();
    for (title, source, name, settings) in [
        (
            "`coordinator.toml`, `HATCHERY_COORDINATOR__KEY`",
            Source::read(&["coordinator/src", "common/src"]),
            "CoordinatorSettings",
            coordinator,
        ),
        (
            "`agent.toml`, `HATCHERY_AGENT__KEY`",
            Source::read(&["agent/src", "common/src"]),
            "AgentSettings",
            agent,
        ),
    ] {
        text.push_str(&format!("\n## {title}\n\n{}", tables(&source, name, &[("default", settings)], "###")));
    }
    assert_generated("docs/reference/settings.md", &text);
}

#[test]
fn every_hatchery_line_of_the_pages_parses() {
    assert_commands_parse("hatchery", 60, |arguments| {
        let line = ["hatchery".to_owned()].into_iter().chain(arguments);
        match Cli::command().try_get_matches_from(line) {
            Err(error) if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                Err(error)
            }
            _ => Ok(()),
        }
    });
}

#[test]
fn every_example_of_the_help_parses() {
    let parsed = examples(&Cli::command());
    assert!(parsed >= 20, "only {parsed} examples were found in the help");
}

/// Parses each line of a command's closing help that calls `hatchery`, and of those within it; returns their number.
fn examples(command: &Command) -> usize {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut parsed = 0;
    for line in help.lines().filter(|line| line.starts_with("  ")) {
        // Two spaces end the command: what it does follows.
        let line = line.trim_start().split("  ").next().unwrap_or_default();
        for arguments in commands_of(line, "hatchery") {
            let words = ["hatchery".to_owned()].into_iter().chain(arguments);
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                panic!("the help of {}: `{line}`: {error}", command.get_name());
            }
            parsed += 1;
        }
    }
    parsed + command.get_subcommands().map(examples).sum::<usize>()
}

/// The command without what its help would take from this process's environment.
fn plain(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(plain)
}

/// The help of a command and of those within it, each under a heading.
fn write_help(text: &mut String, command: &mut Command) {
    let name = command.get_bin_name().unwrap_or("hatchery").to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n")));
    for inner in
        command.get_subcommands_mut().filter(|inner| inner.get_name() != "help" && !inner.is_hide_set())
    {
        write_help(text, inner);
    }
}
