//! The kernels on an NVIDIA GPU: compiled by NVRTC when a training starts, launched through the driver.
//!
//! Both libraries are looked for at run time, so that one build serves every machine, and by the names that libtorch has loaded
//! them by: another CUDA on the machine is not taken. The few functions are bound here, because of a driver's or compiler's
//! status codes, new ones among them, no more has to be known than that 0 is good.
//!
//! The context is the device's primary one and the stream its default one: those that libtorch works in, so that kernels and
//! libtorch's own work follow one another as they are called, and memory that libtorch takes back is used again only behind them.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    fmt, ptr,
};

use libloading::Library;

use super::{
    NAMES, Variant,
    nvrtc::{Compiled, Nvrtc},
};

const LIBRARY: &str = "libcuda.so.1";
const CAPABILITY: [c_int; 2] = [75, 76];
/// The first GPUs that round to bf16 by themselves.
const BF16_CAPABILITY: i32 = 80;

/// Why a GPU has no kernels.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A library is not there.
    #[error("{0} was not found; it comes with the driver and libtorch's CUDA libraries")]
    Missing(&'static str),
    /// A library does not do what it should.
    #[error("{0}")]
    Broken(&'static str),
    /// The GPU cannot have them.
    #[error("there are no {kernels} for a GPU of compute capability {}.{}", capability / 10, capability % 10)]
    TooOld {
        kernels: &'static str,
        /// 75 for 7.5.
        capability: i32,
    },
    /// NVRTC refused the kernels.
    #[error("NVRTC cannot compile the kernels for {architecture}: {message}")]
    Compile {
        /// As NVRTC names it.
        architecture: String,
        message: String,
    },
    #[error("the NVIDIA driver cannot {doing} (error {status})")]
    Driver { doing: &'static str, status: i32 },
    /// What each thread works on should be in registers.
    #[error("the kernels for {0} spill a per-thread array to memory")]
    KeepArrays(String),
}

type Status = c_int;
type Handle = *mut c_void;
type SetCurrent = unsafe extern "C" fn(Handle) -> Status;
type Launch = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
) -> Status;

/// Kernels of one variant on one GPU.
pub(super) struct Cuda {
    context: Handle,
    set_current: SetCurrent,
    launch: Launch,
    functions: HashMap<&'static str, Handle>,
    /// Kept open for the functions above. Modules go with the process: a trainer has one set of kernels.
    _driver: Driver,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Cuda").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

impl Cuda {
    pub(super) fn new(index: usize, variant: Variant) -> Result<Self, CudaError> {
        let driver = Driver::open()?;
        let (context, capability) = driver.enter(index)?;
        let compiled = compile_for(&Nvrtc::open()?, capability, variant)?;
        let functions = driver.load(&compiled)?;
        // SAFETY: the types are those of cuda.h.
        let (set_current, launch) = unsafe {
            (
                driver.function::<SetCurrent>(c"cuCtxSetCurrent")?,
                driver.function::<Launch>(c"cuLaunchKernel")?,
            )
        };
        Ok(Self { context, set_current, launch, functions, _driver: driver })
    }

    /// Puts a kernel behind all other work of the GPU's default stream.
    ///
    /// # Safety
    /// The arguments are the kernel's, in its order, and their tensors are the GPU's.
    pub(super) unsafe fn launch(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), String> {
        let function = *self.functions.get(name).ok_or("is not compiled")?;
        let stream = ptr::null_mut();
        // SAFETY: by this function's own contract. No memory is shared beyond what the kernel says itself. With several GPUs
        // libtorch turns to another one whenever it likes.
        let status = unsafe {
            let arguments = arguments.as_mut_ptr();
            let _ = (self.set_current)(self.context);
            (self.launch)(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, ptr::null_mut())
        };
        if status == 0 { Ok(()) } else { Err(format!("the driver does not start it (error {status})")) }
    }
}

/// Machine code for this very GPU; or, if it is newer than the compiler, PTX of the newest that the compiler knows, which the
/// driver makes machine code of.
fn compile_for(nvrtc: &Nvrtc, capability: i32, variant: Variant) -> Result<Compiled, CudaError> {
    if variant.is_bf16 && capability < BF16_CAPABILITY {
        return Err(CudaError::TooOld { kernels: "kernels in bf16", capability });
    }
    let known = nvrtc.architectures()?;
    if known.contains(&capability) {
        return nvrtc.compile(&format!("sm_{capability}"), variant);
    }
    let below = known.into_iter().filter(|known| *known < capability).max();
    let below = below.ok_or(CudaError::TooOld { kernels: "kernels", capability })?;
    nvrtc.compile(&format!("compute_{below}"), variant)
}

/// Compiles the kernels of a variant for an architecture, such as `sm_90` or `compute_90`, without a GPU. For PTX it is an error
/// if they keep arrays in memory. Whether all registers suffice shows on a GPU only.
pub fn compile(architecture: &str, variant: Variant) -> Result<(), CudaError> {
    let compiled = Nvrtc::open()?.compile(architecture, variant)?;
    let keeps_in_memory = matches!(compiled, Compiled::Ptx(_))
        && compiled.bytes().windows(LOCAL.len()).any(|window| window == LOCAL);
    if keeps_in_memory { Err(CudaError::KeepArrays(architecture.into())) } else { Ok(()) }
}

/// How PTX declares memory of a thread.
const LOCAL: &[u8] = b".local ";

/// NVIDIA's driver, as far as kernels need it.
struct Driver(Library);

impl Driver {
    fn open() -> Result<Self, CudaError> {
        // SAFETY: libtorch has loaded the library before, and its initialiser has run.
        let library = unsafe { Library::new(LIBRARY) };
        library.map(Self).map_err(|_| CudaError::Missing("the NVIDIA driver (libcuda.so.1)"))
    }

    /// Makes the primary context of GPU `index` current; gives it, and the GPU's compute capability: 90 for 9.0.
    fn enter(&self, index: usize) -> Result<(Handle, i32), CudaError> {
        type Init = unsafe extern "C" fn(c_uint) -> Status;
        type GetDevice = unsafe extern "C" fn(*mut c_int, c_int) -> Status;
        type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status;
        type Retain = unsafe extern "C" fn(*mut Handle, c_int) -> Status;
        let (mut device, mut context, mut capability) = (0, ptr::null_mut(), [0; 2]);
        // SAFETY: the types are those of cuda.h; every pointer goes to a local of that type. The context is kept for good.
        unsafe {
            told("start", self.function::<Init>(c"cuInit")?(0))?;
            let get = self.function::<GetDevice>(c"cuDeviceGet")?;
            told("find the GPU", get(&raw mut device, index as c_int))?;
            let attribute = self.function::<GetAttribute>(c"cuDeviceGetAttribute")?;
            for (found, which) in capability.iter_mut().zip(CAPABILITY) {
                told("identify the GPU", attribute(found, which, device))?;
            }
            let retain = self.function::<Retain>(c"cuDevicePrimaryCtxRetain")?;
            told("open the GPU", retain(&raw mut context, device))?;
            told("select the GPU", self.function::<SetCurrent>(c"cuCtxSetCurrent")?(context))?;
        }
        Ok((context, 10 * capability[0] + capability[1]))
    }

    /// Loads what was compiled into the current context, and finds every kernel in it.
    fn load(&self, compiled: &Compiled) -> Result<HashMap<&'static str, Handle>, CudaError> {
        type LoadData = unsafe extern "C" fn(*mut Handle, *const c_void) -> Status;
        type GetFunction = unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Status;
        let mut module = ptr::null_mut();
        // SAFETY: the types are those of cuda.h; machine code says itself how long it is, and PTX ends in 0.
        unsafe {
            let load = self.function::<LoadData>(c"cuModuleLoadData")?;
            told("load the kernels", load(&raw mut module, compiled.bytes().as_ptr().cast()))?;
            let get = self.function::<GetFunction>(c"cuModuleGetFunction")?;
            let functions = NAMES.map(|name| {
                let c_name =
                    CString::new(name).map_err(|_| CudaError::Broken("a kernel's name is invalid"))?;
                let mut function = ptr::null_mut();
                told("find a kernel", get(&raw mut function, module, c_name.as_ptr()))?;
                Ok((name, function))
            });
            functions.into_iter().collect()
        }
    }

    /// # Safety
    /// `F` is the type of the function called `name`.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, CudaError> {
        // SAFETY: by this function's own contract; the library stays open as long as `self`.
        let found = unsafe { self.0.get::<F>(name.to_bytes_with_nul()) };
        found
            .map(|function| *function)
            .map_err(|_| CudaError::Broken("the NVIDIA driver lacks a required function"))
    }
}

fn told(doing: &'static str, status: Status) -> Result<(), CudaError> {
    if status == 0 { Ok(()) } else { Err(CudaError::Driver { doing, status }) }
}
