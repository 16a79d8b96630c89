//! Which files of the wheels are needed, and the few that are made here.
//!
//! ```text
//! libtorch/torch/lib/        the libraries, and on Linux the linker script libtorch.so
//! libtorch/torch/include/    the headers that torch-sys compiles against
//! libtorch/torch/build-version
//! libtorch/nvidia/*/lib/     on Linux: CUDA's, where the libraries' own search path looks for them
//! ```

use super::platform::{Flavour, Platform};
use super::requirement::Requirement;

/// The version that tch 0.24 is made for.
pub(crate) const TORCH_VERSION: &str = "2.11.0";

/// Raised when other files are taken than before, so that older installations are completed.
pub(crate) const LAYOUT: u32 = 2;

/// Where torch-sys reads the version.
pub(super) const BUILD_VERSION: &str = "torch/build-version";

/// The licences of what is taken travel with it.
const LICENCES: &str = ".dist-info/licenses/";

/// The two that `libtorch_cpu.so` names even where there is no GPU, and the file needed of each.
const CPU_CUDA_PARTS: [(&str, &str); 2] =
    [("nvidia-cuda-runtime", "libcudart.so.13"), ("nvidia-cuda-cupti", "libcupti.so.13")];

/// Libraries of the wheel that serve Python only.
const PYTHON_ONLY: [&str; 3] = ["libtorch_python", "libshm", "libtorch_global_deps"];

/// Parts of a name that mark a library as CUDA's.
const CUDA_MARKS: [&str; 3] = ["cuda", "nvrtc", "nvshmem"];

/// Whether a member of the torch wheel is taken.
pub(crate) fn wants_of_torch(name: &str, platform: Platform, flavour: Flavour) -> bool {
    if name.starts_with("torch/include/") || name.contains(LICENCES) {
        return true;
    }
    let Some(library) = name.strip_prefix("torch/lib/").filter(|file| !file.contains('/')) else {
        return false;
    };
    let is_for_python = PYTHON_ONLY.iter().any(|start| library.starts_with(start));
    let is_cuda = CUDA_MARKS.iter().any(|mark| library.contains(mark));
    is_library(library)
        && !is_replaced(library, platform)
        && !is_for_python
        && (flavour == Flavour::Cuda || !is_cuda)
}

/// Whether a member of one of NVIDIA's wheels is taken.
pub(crate) fn wants_of_nvidia(name: &str, project: &str, flavour: Flavour) -> bool {
    if name.contains(LICENCES) {
        return true;
    }
    let mut path = name.split('/');
    let (top, _, lib, file) = (path.next(), path.next(), path.next(), path.next().unwrap_or_default());
    let is_shared = top == Some("nvidia") && lib == Some("lib") && path.next().is_none() && is_library(file);
    is_shared
        && match flavour {
            Flavour::Cuda => true,
            Flavour::Cpu => CPU_CUDA_PARTS.contains(&(project, file)),
        }
}

/// Whether a binary needs an installed file at run time; headers and the linker's own files it does not.
pub(crate) fn is_for_running(path: &str, platform: Platform, cpu_only: bool) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let is_cpu_part =
        wants_of_torch(path, platform, Flavour::Cpu) || CPU_CUDA_PARTS.iter().any(|(_, part)| *part == file);
    path == BUILD_VERSION
        || path.contains(LICENCES)
        || is_library(file) && !is_replaced(file, platform) && (is_cpu_part || !cpu_only)
}

fn is_replaced(library: &str, platform: Platform) -> bool {
    platform.is_linux() && library == "libtorch.so"
}

/// Whether a requirement of torch or of the CUDA toolkit is taken at all.
pub(crate) fn wants_project(requirement: &Requirement, flavour: Flavour) -> bool {
    match flavour {
        Flavour::Cuda => requirement.name.starts_with("nvidia-"),
        Flavour::Cpu => CPU_CUDA_PARTS.iter().any(|(project, _)| *project == requirement.name),
    }
}

fn is_library(file: &str) -> bool {
    let mut parts = file.split('.').skip(1);
    parts.any(|part| part == "so" || part == "dylib")
}

/// Files that no wheel holds: path below `libtorch/` and content.
pub(crate) fn made_here(platform: Platform) -> Vec<(&'static str, String)> {
    let mut files = vec![(BUILD_VERSION, format!("{TORCH_VERSION}\n"))];
    if platform.is_linux() {
        // The wheel's own libtorch.so names libtorch_cuda.so. The trainer is linked with the CPU libraries only and
        // opens the CUDA ones at start, where they are.
        files.push(("torch/lib/libtorch.so", "INPUT ( -ltorch_cpu )\n".to_owned()));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_box_takes_the_cpu_libraries_and_headers() {
        let wants = |name| wants_of_torch(name, Platform::LinuxX86_64, Flavour::Cpu);
        for name in [
            "torch/lib/libc10.so",
            "torch/lib/libtorch_cpu.so",
            "torch/lib/libgomp.so.1",
            "torch/include/a/b.h",
        ] {
            assert!(wants(name), "{name}");
        }
        for name in [
            "torch/lib/libtorch.so",
            "torch/lib/libtorch_cuda.so",
            "torch/lib/libc10_cuda.so",
            "torch/lib/libcaffe2_nvrtc.so",
            "torch/lib/libtorch_nvshmem.so",
            "torch/lib/libtorch_python.so",
            "torch/lib/libshm/alloc_info.h",
            "torch/lib/libtorch_global_deps.so",
            "torch/_C.cpython-313-x86_64-linux-gnu.so",
            "torch/version.py",
        ] {
            assert!(!wants(name), "{name}");
        }
        assert!(wants_of_torch("torch/lib/libnvpl_blas_core.so.0", Platform::LinuxAarch64, Flavour::Cpu));
        assert!(wants_of_torch("torch/lib/libtorch.dylib", Platform::MacosArm64, Flavour::Cpu));
    }

    #[test]
    fn a_release_takes_libraries_and_licences() {
        let taken = |path, cpu_only| is_for_running(path, Platform::LinuxX86_64, cpu_only);
        assert!(taken("torch/lib/libtorch_cpu.so", true) && taken("nvidia/cu13/lib/libcudart.so.13", true));
        assert!(taken("torch-2.11.0.dist-info/licenses/LICENSE", true) && taken("torch/build-version", true));
        assert!(taken("torch/lib/libtorch_cuda.so", false) && !taken("torch/lib/libtorch_cuda.so", true));
        assert!(
            taken("nvidia/cudnn/lib/libcudnn.so.9", false) && !taken("nvidia/cudnn/lib/libcudnn.so.9", true)
        );
        assert!(!taken("torch/lib/libtorch.so", false) && !taken("torch/include/a.h", false));
        assert!(is_for_running("torch/lib/libtorch.dylib", Platform::MacosArm64, true));
    }

    #[test]
    fn a_cuda_box_takes_those_of_cuda_too() {
        let wants = |name| wants_of_torch(name, Platform::LinuxX86_64, Flavour::Cuda);
        assert!(wants("torch/lib/libtorch_cuda.so") && wants("torch/lib/libc10_cuda.so"));
        assert!(!wants("torch/lib/libtorch_python.so") && !wants("torch/lib/libtorch.so"));
    }

    #[test]
    fn of_nvidia_a_cpu_box_takes_two_files() {
        let cudart = "nvidia/cu13/lib/libcudart.so.13";
        assert!(wants_of_nvidia(cudart, "nvidia-cuda-runtime", Flavour::Cpu));
        assert!(!wants_of_nvidia("nvidia/cu13/lib/libnvperf_host.so", "nvidia-cuda-cupti", Flavour::Cpu));
        assert!(!wants_of_nvidia("nvidia/cu13/lib/libcudart_static.a", "nvidia-cuda-runtime", Flavour::Cuda));
        assert!(wants_of_nvidia("nvidia/cudnn/lib/libcudnn.so.9", "nvidia-cudnn-cu13", Flavour::Cuda));
        let requirement = |text| Requirement::parse(text).unwrap();
        assert!(wants_project(&requirement("nvidia-cuda-cupti==1"), Flavour::Cpu));
        assert!(!wants_project(&requirement("nvidia-cublas==1"), Flavour::Cpu));
        assert!(wants_project(&requirement("nvidia-cublas==1"), Flavour::Cuda));
        assert!(!wants_project(&requirement("triton==3.6.0"), Flavour::Cuda));
    }
}
