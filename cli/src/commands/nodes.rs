//! `nodes`, `node`.

use std::time::Duration;

use hatchery_common::{
    availability::Away,
    device::Device,
    node::{Figure, NodeMode, TrainerState},
    view::{NodeState, NodeView, PeersView},
};

use crate::{
    args::NodeArgs,
    exit::Outcome,
    home::Home,
    human,
    output::{Output, facts, table},
};

/// `hatchery nodes`: a line for each device.
pub(crate) async fn list(home: &Home, output: Output) -> Outcome {
    let nodes = home.fleet().await?.nodes().await?;
    output.print(&nodes, |nodes| {
        table(
            &[
                "node",
                "state",
                "device",
                "model",
                ">memory",
                ">tiny steps/s",
                "running",
                "waiting",
                ">checkpoints",
            ],
            nodes.iter().flat_map(rows),
        )
    })
}

fn rows(node: &NodeView) -> Vec<Vec<String>> {
    let replicas = format!("{}/{}", node.replicas_ready, node.replicas_wanted);
    let head =
        |device: String, model: String, memory: String, speed: String, work: [String; 2], first: bool| {
            let (name, state) = if first { (node.name.to_string(), state(node)) } else { Default::default() };
            let replicas = if first { replicas.clone() } else { String::new() };
            let [running, waiting] = work;
            vec![name, state, device, model, memory, speed, running, waiting, replicas]
        };
    if node.inventory.devices.is_empty() {
        let why = match &node.inventory.trainer {
            TrainerState::Missing { .. } => format!("no trainer: see `hatchery node {}`", node.name),
            TrainerState::Ready { .. } => "no device".to_owned(),
        };
        return vec![head(
            "-".into(),
            why,
            human::bytes(node.inventory.memory_bytes),
            "-".into(),
            ["-".into(), "-".into()],
            true,
        )];
    }
    let devices = node.inventory.devices.iter().enumerate();
    devices
        .map(|(index, device)| {
            let running = node.running.iter().find(|running| running.device == device.device);
            let speed =
                device.calibration.as_ref().map(|calibration| human::speed(calibration.steps_per_sec));
            head(
                device.device.to_string(),
                device.name.clone(),
                human::bytes(device.memory_bytes),
                speed.unwrap_or_else(|| "-".to_owned()),
                [
                    running.map_or_else(|| "-".to_owned(), |running| running.job_name.to_string()),
                    waiting(node, device.device),
                ],
                index == 0,
            )
        })
        .collect()
}

/// Whether it is there, and whether it is given work.
fn state(node: &NodeView) -> String {
    let mut words = vec![node.state.name().to_owned()];
    words.extend((node.mode != NodeMode::Open).then(|| node.mode.name().to_owned()));
    words.extend(here_and_away(node).map(|away| format!("away: {away}")));
    words.join(", ")
}

/// Why its devices are its owner's, while it is there to say so.
fn here_and_away(node: &NodeView) -> Option<Away> {
    node.away.filter(|_| node.state == NodeState::Connected)
}

/// The first job that waits for a device, and how many more.
fn waiting(node: &NodeView, device: Device) -> String {
    let mut line = node.waiting.iter().filter(|waiting| waiting.device == device);
    let Some(first) = line.next() else { return "-".to_owned() };
    match line.count() {
        0 => first.job_name.to_string(),
        more => format!("{} and {more} more", first.job_name),
    }
}

/// `hatchery node`.
pub(crate) async fn show(args: NodeArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let node = fleet.node(&args.node).await?;
    if args.remove {
        fleet.remove_node(&args.node).await?;
        return output.print(&node, |node| {
            format!("node {} is removed from the fleet; its certificates are revoked", node.name)
        });
    }
    let mode = match (args.cordon, args.drain, args.open) {
        (true, ..) => NodeMode::Cordoned,
        (_, true, _) => NodeMode::Draining,
        (.., true) => NodeMode::Open,
        _ => return output.print(&node, describe),
    };
    let node = fleet.set_node_mode(&args.node, mode).await?;
    output.print(&node, |node| {
        let running = node.running.len();
        let name = &node.name;
        match node.mode {
            NodeMode::Open => format!("node {name} accepts jobs again"),
            NodeMode::Cordoned => {
                format!("node {name} accepts no new jobs; running jobs that continue: {running}")
            }
            NodeMode::Draining => {
                format!(
                    "node {name} accepts no new jobs; running jobs that move elsewhere after a checkpoint: \
                     {running}"
                )
            }
        }
    })
}

/// How it stands among the nodes that fetch blobs from one another.
fn peers(peers: &PeersView) -> String {
    let mut parts = vec![match peers.addresses.first() {
        Some(address) if peers.can_be_dialled => format!("serves peers at {address}"),
        Some(address) => format!("serves no peers: the coordinator cannot reach {address}"),
        None => "serves no peers".to_owned(),
    }];
    parts.push(format!("{} sent", human::bytes(peers.sent_bytes)));
    parts.push(format!("{} received", human::bytes(peers.received_bytes)));
    let rate = |rate: f64| format!("{}/s", human::bytes(rate as u64));
    parts.extend(peers.up_bytes_per_sec.map(|up| format!("{} up", rate(up))));
    parts.extend(peers.down_bytes_per_sec.map(|down| format!("{} down", rate(down))));
    parts.join(", ")
}

/// Who was sent wrong bytes by it, and what that means.
fn suspicion(node: &NodeView) -> Option<String> {
    let peers = node.peers.as_ref().filter(|peers| !peers.suspected_by.is_empty())?;
    let by: Vec<String> = peers.suspected_by.iter().map(ToString::to_string).collect();
    let (by, name) = (by.join(", "), &node.name);
    Some(if peers.is_barred {
        format!(
            "it sent corrupt data to {by}; no node fetches from it any more: check its disk and memory, \
             then run `hatchery node {name} --open`"
        )
    } else {
        format!("it sent corrupt data to {by}, which now fetches from other peers")
    })
}

fn describe(node: &NodeView) -> String {
    let inventory = &node.inventory;
    let trainer = match &inventory.trainer {
        TrainerState::Ready { version, libtorch } => format!("{version} with libtorch {libtorch}"),
        TrainerState::Missing { why } => format!("none: {why}"),
    };
    let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let last_heard =
        node.last_heard_ms_ago.map(|ms| format!("{} ago", human::duration(Duration::from_millis(ms))));
    let of_then = last_heard.as_ref().filter(|_| node.state != NodeState::Connected);
    let figure = |figure: Option<Figure>| match (figure.map(human::figure), of_then) {
        (None, _) => "-".to_owned(),
        (Some(figure), None) => figure,
        (Some(figure), Some(then)) => format!("{figure}, {then}"),
    };
    let figures = node.metrics.unwrap_or_default().figures().map(|(name, value)| (name, Some(figure(value))));
    let mut rows = vec![
        ("node", Some(node.id.to_string())),
        ("name", Some(node.name.to_string())),
        ("state", Some(state(node))),
        ("last heard", last_heard.clone()),
        ("labels", (!labels.is_empty()).then(|| labels.join(", "))),
        ("machine", Some(format!("{}: {}, {}", inventory.hostname, inventory.os, inventory.architecture))),
        ("processor", Some(format!("{}, {} cores", inventory.cpu_model, inventory.cores))),
        ("memory", Some(human::bytes(inventory.memory_bytes))),
        ("disk", Some(human::bytes(inventory.disk_bytes))),
        ("agent", Some(inventory.agent_version.clone())),
        ("trainer", Some(trainer)),
        ("checkpoints", Some(format!("{} of {} ready", node.replicas_ready, node.replicas_wanted))),
        ("peers", node.peers.as_ref().map(peers)),
        ("joined", Some(node.joined_at.to_string())),
    ];
    rows.extend(figures);
    let mut text = facts(&rows);
    for device in &inventory.devices {
        let mut parts = vec![device.name.clone()];
        if device.memory_bytes > 0 {
            parts.push(human::bytes(device.memory_bytes));
        }
        if device.bf16 {
            parts.push("bf16".to_owned());
        }
        parts.extend(device.driver.as_ref().map(|driver| format!("driver {driver}")));
        parts.extend(device.power_watts_max.map(|watts| format!("up to {watts:.0} W")));
        parts.extend(device.calibration.as_ref().map(|calibration| {
            format!(
                "{} steps/s on tiny, {:.1} GFLOP/s",
                human::speed(calibration.steps_per_sec),
                calibration.flops_per_sec / 1e9
            )
        }));
        text += &format!("\n{:<13}{}", device.device, parts.join(", "));
    }
    for note in inventory.notes.iter().cloned().chain(suspicion(node)) {
        text += &format!("\nnote         {note}");
    }
    for active in &node.active {
        text += &format!(
            "\nactive       {} at step {} for {} ({})",
            active.checkpoint.short(),
            active.step,
            active.job_name,
            active.job.short()
        );
    }
    for running in &node.running {
        let progress = running.progress.map_or_else(String::new, |progress| {
            format!(", step {} at {} steps/s", progress.step, human::speed(progress.steps_per_sec))
        });
        text += &format!(
            "\nrunning      {} ({}) on {}{progress}",
            running.job_name,
            running.job.short(),
            running.device
        );
    }
    for waiting in &node.waiting {
        let start = human::duration(Duration::from_millis(waiting.start_in_ms));
        text += &format!(
            "\nwaiting      {} ({}) for {}, starts in {start}",
            waiting.job_name,
            waiting.job.short(),
            waiting.device
        );
    }
    text
}
