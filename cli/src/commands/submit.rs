//! `submit`: a corpus and a recipe become a job.

use std::{collections::BTreeSet, fs, path::Path};

use hatchery_common::{
    dataset::{self, DatasetManifest, Scan},
    id::{DatasetId, Name, RequestId},
    recipe::{JobSpec, NodeSelector, QueueWishes, Recipe, StartFrom, StartHow},
    time::Timestamp,
    view::{CheckpointView, JobView},
};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::client::FleetClient;
use indicatif::{ProgressBar, ProgressStyle};

use super::{checkpoints::parse_selector, grid, jobs, placement, watch};
use crate::{
    args::SubmitArgs,
    exit::{Code, Failure, Outcome},
    home::Home,
    human,
    output::{Output, is_interactive},
};

/// `hatchery submit`.
pub(crate) async fn submit(args: SubmitArgs, home: &Home, output: Output) -> Outcome {
    let wait = args.wait;
    let request = args.request_id.unwrap_or_else(RequestId::random);
    let Prepared { recipe, text, fallback_name, start_from, own_dataset } = prepare(&args, home).await?;
    let scan = match (&args.dataset, own_dataset) {
        (Some(_), _) => None,
        (None, Some(_)) if recipe.data.paths.is_empty() => None,
        (None, _) => Some(scan(&recipe)?),
    };
    let fleet = home.fleet().await?;
    let dataset = match (&args.dataset, scan, own_dataset) {
        (Some(wanted), ..) => find_dataset(&fleet, wanted).await?,
        (None, Some(scan), _) => upload(&fleet, home, scan, &fallback_name, output).await?,
        (None, None, Some(own)) => own,
        (None, None, None) => return Err(Failure::usage("no data: give --data PATH or --dataset ID")),
    };
    let spec = JobSpec { start_from, ..recipe.job(dataset, &fallback_name) };
    let spec = JobSpec { queue: in_queue(&args, spec.queue.clone(), &fleet).await?, ..spec };
    if args.dry_run {
        return output.print(&fleet.dry_run(&spec).await?, placement::show);
    }
    if !args.grid.is_empty() {
        return submit_grid(&args, &text, &spec, &fleet, output).await;
    }
    let job = send(&fleet, request, &spec).await?;
    if !wait {
        return output.print(&job, |job| {
            let mut text = format!("job {} submitted as {}", job.id.short(), job.spec.name);
            if let Some(why) = &job.why {
                text += &format!("\n{why}");
            }
            text + &format!("\nfollow it with: hatchery watch {}", job.id.short())
        });
    }
    if output == Output::Text {
        eprintln!("job {} submitted as {}", job.id.short(), job.spec.name);
    }
    watch::watch(&fleet, &job.id.to_string(), output).await
}

/// One job for each point of the grid, all of one group. Every recipe is checked before the first job is sent.
async fn submit_grid(
    args: &SubmitArgs,
    text: &str,
    like: &JobSpec,
    fleet: &FleetClient,
    output: Output,
) -> Outcome {
    let group = args.group.clone().unwrap_or_else(|| like.name.clone());
    let mut specs = Vec::new();
    for point in grid::points(&args.grid).map_err(Failure::usage)? {
        let name = grid::name(&like.name, &point);
        let settings: Vec<String> = args.set.iter().cloned().chain(point).collect();
        let recipe = Recipe { name: Some(name), ..recipe(args, text, &settings)? };
        let queue = QueueWishes { group: Some(group.clone()), ..like.queue.clone() };
        specs.push(JobSpec { start_from: like.start_from, queue, ..recipe.job(like.dataset, &like.name) });
    }
    let mut jobs = Vec::with_capacity(specs.len());
    for spec in &specs {
        jobs.push(send(fleet, RequestId::random(), spec).await?);
    }
    if args.wait {
        if output == Output::Text {
            eprintln!("{} jobs submitted as group {group}", jobs.len());
        }
        return jobs::list_group(fleet, &group, true, output).await;
    }
    output.print(&jobs, |jobs| {
        let mut text = format!("{} jobs submitted as group {group}", jobs.len());
        for job in jobs {
            text += &format!("\n  {}  {}", job.id.short(), job.spec.name);
        }
        text + &format!("\ncompare them with: hatchery jobs --group {group}")
    })
}

/// How the job stands in the queue: as the recipe says, and over that what was typed.
async fn in_queue(
    args: &SubmitArgs,
    mut queue: QueueWishes,
    fleet: &FleetClient,
) -> Result<QueueWishes, Failure> {
    if let Some(priority) = args.priority {
        queue.priority = priority;
    }
    if args.group.is_some() {
        queue.group.clone_from(&args.group);
    }
    if let Some(deadline) = args.deadline {
        queue.deadline = Some(Timestamp::now() + deadline);
    }
    for job in &args.after {
        queue.after.push(fleet.job(job).await?.id);
    }
    Ok(queue)
}

/// What is to be trained, but for the text.
struct Prepared {
    recipe: Recipe,
    /// The recipe's text, before what else was typed.
    text: String,
    /// What the job is called where neither recipe nor `--name` says.
    fallback_name: Name,
    start_from: Option<StartFrom>,
    /// The dataset of the checkpoint that the job begins with.
    own_dataset: Option<DatasetId>,
}

/// The recipe; that of another job's checkpoint, where the job begins with one.
async fn prepare(args: &SubmitArgs, home: &Home) -> Result<Prepared, Failure> {
    let (given, how) = match (&args.from, &args.fine_tune) {
        (Some(given), _) => (given, StartHow::Continue),
        (None, Some(given)) => (given, StartHow::FineTune),
        (None, None) => {
            let text = text(args)?;
            let recipe = recipe(args, &text, &args.set)?;
            let fallback_name = fallback_name(args).unwrap_or_else(|| Name::from_lossy("job"));
            return Ok(Prepared { recipe, text, fallback_name, start_from: None, own_dataset: None });
        }
    };
    let fleet = home.fleet().await?;
    let CheckpointView { id, manifest, job_name, .. } = fleet.checkpoint(given).await?;
    let (text, named) = match how {
        StartHow::Continue => {
            let job = fleet.job(&manifest.job.to_string()).await?;
            if !job.unread.is_empty() {
                let why = job.unread.join("; ");
                return Err(Failure::usage(format!("job {job_name} cannot be continued: {why}")));
            }
            (Recipe::text_of(&job.spec), format!("{job_name}-from-{}", manifest.step))
        }
        StartHow::FineTune => {
            let text = Recipe::text_like(&text(args)?, &manifest.model, None).map_err(Failure::usage)?;
            (text, format!("{job_name}-tuned"))
        }
    };
    Ok(Prepared {
        recipe: recipe(args, &text, &args.set)?,
        text,
        fallback_name: fallback_name(args).unwrap_or_else(|| Name::from_lossy(&named)),
        start_from: Some(StartFrom { checkpoint: id, how }),
        own_dataset: Some(manifest.dataset),
    })
}

/// Sends the job; while the coordinator is away, again with the same request id, so that it is one job (I2).
async fn send(fleet: &FleetClient, request: RequestId, spec: &JobSpec) -> Result<JobView, Failure> {
    const TRIES_MAX: u32 = 5;
    let mut tries = 1;
    loop {
        match fleet.submit(request, spec).await {
            Ok((job, _)) => return Ok(job),
            Err(error) if error.is_retriable() && tries < TRIES_MAX => {
                tokio::time::sleep(std::time::Duration::from_millis(200 << tries)).await;
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The recipe file's text; empty without one.
fn text(args: &SubmitArgs) -> Result<String, Failure> {
    let Some(path) = &args.recipe else { return Ok(String::new()) };
    fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))
}

/// The recipe by `text` and what else was typed.
fn recipe(args: &SubmitArgs, text: &str, settings: &[String]) -> Result<Recipe, Failure> {
    let mut recipe = Recipe::parse(args.preset.as_deref(), text, settings).map_err(Failure::usage)?;
    if let Some(name) = &args.name {
        recipe.name = Some(Name::new("--name", name).map_err(Failure::usage)?);
    }
    if !args.data.is_empty() {
        recipe.data.paths.clone_from(&args.data);
    }
    if !args.include.is_empty() {
        recipe.data.include.clone_from(&args.include);
    }
    if !args.device.is_empty() {
        recipe.devices.kinds.clone_from(&args.device);
    }
    if !args.node.is_empty() {
        recipe.devices.nodes.clone_from(&args.node);
    }
    if !args.exclude.is_empty() {
        recipe.devices.exclude.clone_from(&args.exclude);
    }
    if let Some(mib) = args.memory_min {
        recipe.devices.memory_bytes_min = mib.saturating_mul(1 << 20);
    }
    recipe.devices.labels.extend(args.labels.iter().cloned());
    if let Some(to) = &args.replicate_to {
        recipe.replicate.to = parse_selector(to)?
            .ok_or_else(|| Failure::usage("--replicate-to takes all, none, or labels such as room=attic"))?;
    }
    if let Some(which) = args.replicate_which {
        recipe.replicate.which = which.into();
    }
    if let Some(weights) = args.replicate_weights {
        recipe.replicate.weights = weights.into();
    }
    if matches!(&recipe.replicate.to, NodeSelector::Labels(labels) if labels.is_empty()) {
        return Err(Failure::usage("replicate.to: needs at least one label"));
    }
    Ok(recipe)
}

/// A name after what was typed: the recipe, the data, the preset.
fn fallback_name(args: &SubmitArgs) -> Option<Name> {
    let stem = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        path.file_stem().map(|stem| Name::from_lossy(&stem.to_string_lossy()))
    };
    args.recipe
        .as_deref()
        .or_else(|| args.data.first().map(AsRef::as_ref))
        .and_then(stem)
        .or_else(|| args.preset.as_deref().map(Name::from_lossy))
}

fn scan(recipe: &Recipe) -> Result<Scan, Failure> {
    let scan = dataset::scan(&recipe.data).map_err(Failure::usage)?;
    recipe.train.split(scan.corpus_bytes()).map_err(Failure::usage)?;
    Ok(scan)
}

async fn find_dataset(fleet: &FleetClient, wanted: &str) -> Result<DatasetId, Failure> {
    let datasets = fleet.datasets().await?;
    let found: BTreeSet<DatasetId> = datasets
        .iter()
        .filter(|dataset| dataset.name.as_str() == wanted || dataset.id.to_string().starts_with(wanted))
        .map(|dataset| dataset.id)
        .collect();
    match found.len() {
        1 => found.into_iter().next().ok_or_else(|| Failure::failed("the dataset is gone")),
        0 => Err(Failure::new(
            Code::NotFound,
            format!("there is no dataset {wanted}; see `hatchery datasets`"),
        )),
        count => Err(Failure::new(
            Code::NotFound,
            format!("{wanted} matches {count} datasets; give more of the id"),
        )),
    }
}

/// Hashes the corpus, sends what the coordinator lacks, and registers the dataset.
async fn upload(
    fleet: &FleetClient,
    home: &Home,
    scan: Scan,
    name: &Name,
    output: Output,
) -> Result<DatasetId, Failure> {
    let bar = bar(output, scan.corpus_bytes(), "reading");
    let progress = bar.clone();
    let name = name.clone();
    let (files, total_bytes) = (scan.files.len(), scan.corpus_bytes());
    let hashed =
        tokio::task::spawn_blocking(move || dataset::hash_scan(&scan, &name, |bytes| progress.inc(bytes)))
            .await;
    let (manifest, sources): (DatasetManifest, _) =
        hashed.map_err(Failure::failed)?.map_err(Failure::usage)?;
    bar.finish_and_clear();
    let bulk = BlobClient::connect(&home.credentials()?).await?;
    let bar = self::bar(output, manifest.corpus_bytes(), "sending");
    let sent = bulk.put_files(&sources, |bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    sent.map_err(|error| Failure::failed(format!("cannot send the dataset: {error}")))?;
    let dataset = fleet.create_dataset(&manifest).await?;
    if output == Output::Text {
        eprintln!("dataset {}: {files} files, {}", dataset.id.short(), human::bytes(total_bytes));
    }
    Ok(dataset.id)
}

fn bar(output: Output, total_bytes: u64, what: &'static str) -> ProgressBar {
    if output != Output::Text || !is_interactive() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:>8} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total_bytes).with_style(style).with_message(what)
}
