//! libtorch's CUDA part: opened at run time, since the trainer is not linked with it.

use std::{fs, path::Path, sync::OnceLock};

use crate::ffi;

/// CUDA in libtorch: a library of its own that the trainer is not linked with, so that one build serves every machine.
pub(crate) const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// libtorch's CUDA part, a library of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CudaLibrary {
    Loaded,
    Absent,
    /// With the linker's words.
    Broken(String),
}

static CUDA: OnceLock<CudaLibrary> = OnceLock::new();

/// Loads libtorch's CUDA part if it stands beside the libtorch that this process has. First thing in `main`, before
/// libtorch looks for devices.
pub fn open_cuda() {
    CUDA.get_or_init(|| {
        let Some(library) = ffi::libtorch_folder().map(|folder| folder.join(CUDA_LIBRARY)) else {
            return CudaLibrary::Absent;
        };
        if !library.exists() {
            return CudaLibrary::Absent;
        }
        let opened = ffi::open_library(&library);
        if opened.is_ok() {
            open_compiler(&library);
        }
        opened.map_or_else(CudaLibrary::Broken, |()| CudaLibrary::Loaded)
    });
}

/// Opens the compiler for kernels from where libtorch's CUDA libraries are, in whose folders nobody else looks: what it needs
/// first. Without it all goes on, with libtorch's own operations.
fn open_compiler(cuda_library: &Path) {
    let Some(folder) = cuda_library.parent() else { return };
    // Beside libtorch, or as the wheels lie: torch/lib beside nvidia/cu13/lib.
    for folder in [folder.to_owned(), folder.join("../../nvidia/cu13/lib")] {
        let files = || fs::read_dir(&folder).into_iter().flatten();
        let names = || files().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // As the wheels name them, or with a digest as libtorch's own archive does; `alt` is for other drivers.
        let of_compiler =
            |name: &String| name.starts_with("libnvrtc") && name.contains(".so") && !name.contains(".alt.");
        let is_builtins = |name: &String| name.starts_with("libnvrtc-builtins");
        let builtins = names().find(|name| of_compiler(name) && is_builtins(name));
        let compiler = names().find(|name| of_compiler(name) && !is_builtins(name));
        if let (Some(builtins), Some(compiler)) = (builtins, compiler) {
            // What does not open is told when kernels are wanted.
            let _ = ffi::open_library(&folder.join(builtins))
                .and_then(|()| ffi::open_library(&folder.join(compiler)));
            return;
        }
    }
}

/// What became of it; absent, before [`open_cuda`].
pub(crate) fn opened() -> CudaLibrary {
    CUDA.get().cloned().unwrap_or(CudaLibrary::Absent)
}
