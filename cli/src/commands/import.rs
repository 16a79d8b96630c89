//! `import`: a checkpoint folder out of a file of the public code.

use std::path::Path;

use hatchery_bdh::{ImportError, ImportOptions, Imported};
use hatchery_common::model::ModelConfig;
use serde::Serialize;

use crate::{
    args::ImportArgs,
    exit::{Code, Failure, Outcome},
    output::{Output, facts},
};

#[derive(Debug, Serialize)]
struct Made<'a> {
    folder: &'a Path,
    model: &'a ModelConfig,
    parameters: u64,
    /// The block in bytes that it was trained on, if that is known.
    trained_block: Option<u32>,
}

/// `hatchery import`.
pub(crate) fn import(args: &ImportArgs, output: Output) -> Outcome {
    let options = ImportOptions { n_layer: args.n_layer, dropout: args.dropout, block: args.block };
    let imported = Imported::read(&args.file, &options)?;
    imported.write(&args.out)?;
    let model = imported.config();
    let made = Made {
        folder: &args.out,
        model,
        parameters: model.parameters(),
        trained_block: imported.trained_block(),
    };
    output.print(&made, |made| {
        let raw = made.model.raw();
        facts(&[
            ("folder", Some(made.folder.display().to_string())),
            ("layers", Some(raw.n_layer.to_string())),
            ("width", Some(raw.n_embd.to_string())),
            ("heads", Some(raw.n_head.to_string())),
            ("neurons", Some(format!("{} per head", made.model.neurons_per_head()))),
            ("parameters", Some(made.parameters.to_string())),
            (
                "block",
                Some(
                    made.trained_block
                        .map_or("not known; set it with --block".to_owned(), |block| block.to_string()),
                ),
            ),
        ])
    })
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let code = match &error {
            ImportError::Unreadable { .. } | ImportError::Write(_) => Code::Failed,
            ImportError::Config { .. } => Code::Usage,
            _ => Code::Refused,
        };
        Self::new(code, error)
    }
}
