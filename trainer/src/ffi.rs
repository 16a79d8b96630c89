//! Everything unsafe of this crate, but the choice of vector instructions in `fast/kernels.rs`: what the operating system and libtorch offer as C functions only.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int, c_void},
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use memmap2::Mmap;

unsafe extern "C" {
    /// Of libtorch: major, minor and patch in the three upper bytes.
    fn aoti_torch_abi_version() -> u64;
}

/// The version of the libtorch that this process has loaded: `2.11.0`.
pub fn libtorch_version() -> String {
    // SAFETY: takes nothing and returns a constant.
    let version = unsafe { aoti_torch_abi_version() };
    let [major, minor, patch, ..] = version.to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

/// The folder of the libtorch that this process has loaded.
pub fn libtorch_folder() -> Option<PathBuf> {
    // SAFETY: dladdr only compares the address and fills in `info`, whose strings belong to the linker and stay.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let found = libc::dladdr(aoti_torch_abi_version as *const c_void, &raw mut info) != 0;
        (found && !info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname))?
    };
    let library = Path::new(OsStr::from_bytes(name.to_bytes()));
    std::fs::canonicalize(library.parent()?).ok()
}

/// Loads a library for good, its symbols visible to all; the error is the linker's own.
pub fn open_library(path: &Path) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the library's initialisers run, which is the purpose; it is never closed. dlerror's text is copied
    // before the next call of the linker.
    unsafe {
        if libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            let message = libc::dlerror();
            return Err(if message.is_null() {
                "no reason given by the dynamic linker".into()
            } else {
                CStr::from_ptr(message).to_string_lossy().into_owned()
            });
        }
    }
    Ok(())
}

/// What NVIDIA's driver says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaDriver {
    /// What cuInit gave; 0: it works.
    pub init: i32,
    /// The newest CUDA that it runs, as 1000 times the major version and 10 times the minor one.
    pub cuda: i32,
}

/// Asks the driver about itself. None: there is no driver's library.
pub fn cuda_driver() -> Option<CudaDriver> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: as in `cuda_device`.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if driver.is_null() {
            return None;
        }
        let symbol = |name: &CStr| libc::dlsym(driver, name.as_ptr());
        let init = std::mem::transmute::<*mut c_void, Option<Init>>(symbol(c"cuInit"))?;
        let version = std::mem::transmute::<*mut c_void, Option<Version>>(symbol(c"cuDriverGetVersion"))?;
        let mut cuda = 0;
        // The version is told even where the driver cannot start.
        let _ = version(&raw mut cuda);
        Some(CudaDriver { init: init(0), cuda })
    }
}

/// What NVIDIA's driver says about a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaDevice {
    pub name: String,
    pub memory_bytes: u64,
    /// Compute capability, the part before the dot.
    pub capability_major: i32,
}

/// Asks the driver about GPU `index`. None: there is no driver, or it does not answer.
pub fn cuda_device(index: u32) -> Option<CudaDevice> {
    const CAPABILITY_MAJOR: c_int = 75;
    const NAME_BYTES_MAX: usize = 256;
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;

    // SAFETY: the driver's C interface is stable; the types above are those of cuda.h, and every pointer goes to a local
    // of that type. A symbol that is missing is a null pointer, which `transmute` makes None.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if driver.is_null() {
            return None;
        }
        let symbol = |name: &CStr| libc::dlsym(driver, name.as_ptr());
        let init = std::mem::transmute::<*mut c_void, Option<Init>>(symbol(c"cuInit"))?;
        let get = std::mem::transmute::<*mut c_void, Option<Get>>(symbol(c"cuDeviceGet"))?;
        let name = std::mem::transmute::<*mut c_void, Option<Name>>(symbol(c"cuDeviceGetName"))?;
        let memory = std::mem::transmute::<*mut c_void, Option<Memory>>(symbol(c"cuDeviceTotalMem_v2"))?;
        let attribute =
            std::mem::transmute::<*mut c_void, Option<Attribute>>(symbol(c"cuDeviceGetAttribute"))?;

        let (mut device, mut bytes, mut major) = (0, 0, 0);
        let mut text: [c_char; NAME_BYTES_MAX] = [0; NAME_BYTES_MAX];
        let answered = init(0) == 0
            && get(&raw mut device, index as c_int) == 0
            && name(text.as_mut_ptr(), NAME_BYTES_MAX as c_int - 1, device) == 0
            && memory(&raw mut bytes, device) == 0
            && attribute(&raw mut major, CAPABILITY_MAJOR, device) == 0;
        answered.then(|| CudaDevice {
            name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
            memory_bytes: bytes as u64,
            capability_major: major,
        })
    }
}

/// Makes glibc keep freed memory instead of giving it back and asking again. A training step makes and frees the same
/// large temporaries every time; mapped anew each time, their page faults cost a third of the step. What is freed joins
/// its neighbours at once (no fast bins), so that the heap stays small; `environment` does the same for its thread cache.
#[cfg(target_env = "gnu")]
pub fn keep_freed_memory() {
    const KEEP_ALL: c_int = -1;
    const GROW_BYTES: c_int = 64 << 20;
    // Autograd's thread would have a heap of its own, of which large pieces go back whatever else is set.
    const ONE_HEAP: c_int = 1;
    // SAFETY: mallopt only sets numbers, and locks for it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ONE_HEAP);
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_MXFAST, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_ALL);
        libc::mallopt(libc::M_TOP_PAD, GROW_BYTES);
    }
}

/// Other allocators keep freed memory by themselves, or cannot be told.
#[cfg(not(target_env = "gnu"))]
pub fn keep_freed_memory() {}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Counts SIGTERM and SIGINT from now on instead of dying of them; the second one exits at once.
pub fn watch_signals() {
    extern "C" fn on_signal(signal: c_int) {
        const SIGNAL_EXIT: c_int = 128; // as shells report a death by signal
        if SIGNALS.fetch_add(1, Ordering::Relaxed) > 0 {
            // SAFETY: _exit is async-signal-safe. A checkpoint being written has no final name yet.
            unsafe { libc::_exit(SIGNAL_EXIT + signal) }
        }
    }
    let handler = on_signal as extern "C" fn(c_int);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler touches an atomic and calls _exit, nothing else.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether a watched signal came.
pub fn was_signalled() -> bool {
    SIGNALS.load(Ordering::Relaxed) > 0
}

/// Ends the process at once, whatever other threads do: nothing is cleared away under them.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number.
    unsafe { libc::_exit(code) }
}

/// Maps a file to be read.
pub fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: corpora are immutable by contract; a change by others gives wrong bytes or SIGBUS, never a write.
    unsafe { Mmap::map(file) }
}

/// The largest resident memory of this process so far in bytes; 0 where it cannot be told.
#[cfg(target_os = "linux")]
pub fn resident_bytes_max() -> u64 {
    // Not getrusage: its figure survives an exec.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

/// The largest resident memory of this process so far in bytes.
#[cfg(not(target_os = "linux"))]
pub fn resident_bytes_max() -> u64 {
    resident_bytes()
}

/// Processor time of the calling thread so far, in seconds; 0 where it cannot be told.
pub fn thread_cpu_secs() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in the local.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    if failed { 0.0 } else { time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9 }
}

/// Pages that the kernel has brought in for this process without reading them from a disk; none where it cannot be told.
pub fn page_faults() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name may hold anything but ends with the last bracket; the figure is the tenth of the line.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// The resident memory of this process in bytes, where it can be told.
#[cfg(target_os = "linux")]
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    // SAFETY: takes a number and returns one.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or_default() * u64::try_from(page_bytes).unwrap_or_default()
}

/// The largest resident memory of this process so far in bytes: macOS tells the present one only through Mach.
#[cfg(not(target_os = "linux"))]
pub fn resident_bytes() -> u64 {
    // SAFETY: getrusage fills in the local.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        u64::try_from(usage.ru_maxrss).unwrap_or_default()
    }
}
