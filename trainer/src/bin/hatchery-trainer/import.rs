//! `hatchery-trainer import`: a checkpoint folder out of a file of the public code.

use std::path::Path;

use hatchery_bdh::{ImportOptions, Imported};
use hatchery_common::model::ModelConfig;
use serde::Serialize;

use crate::{
    args::{Import, Output},
    print, print_json,
};

/// What was made, as JSON.
#[derive(Debug, Serialize)]
struct Made<'a> {
    folder: &'a Path,
    model: &'a ModelConfig,
    /// The block in bytes that it was trained on, if that is known.
    trained_block: Option<u32>,
}

pub(crate) fn import(args: &Import) -> anyhow::Result<()> {
    let options = ImportOptions { n_layer: args.n_layer, dropout: args.dropout, block: args.block };
    let imported = Imported::read(&args.file, &options)?;
    imported.write(&args.out)?;
    let (folder, model) = (&args.out, imported.config());
    match args.output {
        Output::Json => print_json(&Made { folder, model, trained_block: imported.trained_block() }),
        Output::Text => print(&format!("{}: {} parameters", folder.display(), model.parameters())),
    }
}
