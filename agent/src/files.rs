//! Small file work shared by the modules that keep things.

use std::{fs, path::Path};

use hatchery_common::durable::FileError;

/// Prefix of what is being put together; cleared at start.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Removes a folder and all in it, if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// The names in a folder that are plain text; those left unfinished are removed on the way.
pub(crate) fn finished_names(folder: &Path) -> Result<Vec<String>, FileError> {
    let entries = fs::read_dir(folder).map_err(|error| FileError::new("read", folder, error))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| FileError::new("read", folder, error))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with(UNFINISHED) {
            names.push(name);
        } else if entry.path().is_dir() {
            remove_folder(&entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    Ok(names)
}
