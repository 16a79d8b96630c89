//! NVIDIA's compiler for kernels, opened at run time: the eleven functions of it that are needed. It needs no GPU.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
};

use libloading::Library;

use super::{CudaError, SOURCE, Variant};

/// Its library as libtorch 2.11 has it. By this name it is found wherever it was opened from before.
const LIBRARY: &str = "libnvrtc.so.13";

type Program = *mut c_void;
/// 0: it went well.
type Status = c_int;

/// What came of compiling.
pub(super) enum Compiled {
    /// Machine code of one kind of GPU.
    Cubin(Vec<u8>),
    /// For the driver to compile; ends in 0.
    Ptx(Vec<u8>),
}

impl Compiled {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Cubin(bytes) | Self::Ptx(bytes) => bytes,
        }
    }
}

pub(super) struct Nvrtc(Library);

impl Nvrtc {
    pub(super) fn open() -> Result<Self, CudaError> {
        // SAFETY: the library does nothing when it is loaded.
        let library = unsafe { Library::new(LIBRARY) };
        library.map(Self).map_err(|_| CudaError::Missing("NVRTC (libnvrtc)"))
    }

    /// The compute capabilities that it knows: 90 for 9.0.
    pub(super) fn architectures(&self) -> Result<Vec<i32>, CudaError> {
        type Count = unsafe extern "C" fn(*mut c_int) -> Status;
        type Get = unsafe extern "C" fn(*mut c_int) -> Status;
        let mut count = 0;
        // SAFETY: the types are those of nvrtc.h; the second call fills in as many numbers as the first has told.
        unsafe {
            let failed = self.function::<Count>(c"nvrtcGetNumSupportedArchs")?(&raw mut count) != 0;
            let mut found = vec![0; usize::try_from(count).unwrap_or_default()];
            let get = self.function::<Get>(c"nvrtcGetSupportedArchs")?;
            if failed || get(found.as_mut_ptr()) != 0 {
                return Err(CudaError::Broken("NVRTC does not list its architectures"));
            }
            Ok(found)
        }
    }

    /// Compiles the kernels for an architecture: machine code for `sm_90`, PTX for `compute_90`.
    pub(super) fn compile(&self, architecture: &str, variant: Variant) -> Result<Compiled, CudaError> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
        type Destroy = unsafe extern "C" fn(*mut Program) -> Status;
        let failed = |message: String| CudaError::Compile { architecture: architecture.into(), message };
        let text = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
        let options = [
            text(&format!("--gpu-architecture={architecture}"))?,
            text("--std=c++17")?,
            text(&format!("-DNUMBER_BF16={}", u8::from(variant.is_bf16)))?,
            text(&format!("-DPAIRS={}", variant.pairs))?,
        ];
        let options = options.each_ref().map(|option| option.as_ptr());
        let (source, name) = (text(SOURCE)?, text("kernels.cu")?);
        let mut program: Program = ptr::null_mut();
        // SAFETY: the types are those of nvrtc.h; texts and options end in 0 and live until the program is destroyed.
        unsafe {
            let create = self.function::<Create>(c"nvrtcCreateProgram")?;
            let destroy = self.function::<Destroy>(c"nvrtcDestroyProgram")?;
            let compile = self.function::<Compile>(c"nvrtcCompileProgram")?;
            if create(&raw mut program, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) != 0 {
                return Err(failed("it accepts no program".into()));
            }
            let compiled = if compile(program, options.len() as c_int, options.as_ptr()) != 0 {
                let log = self.read(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog", program);
                let log = log.unwrap_or_default();
                let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
                Err(failed(log.to_string_lossy().trim().to_owned()))
            } else if architecture.starts_with("sm_") {
                self.read(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN", program).map(Compiled::Cubin)
            } else {
                self.read(c"nvrtcGetPTXSize", c"nvrtcGetPTX", program).map(Compiled::Ptx)
            };
            let _ = destroy(&raw mut program);
            compiled
        }
    }

    /// One of a program's results: its size, then itself.
    ///
    /// # Safety
    /// The names are those of a pair of such functions; the program is a live one.
    unsafe fn read(&self, size: &CStr, get: &CStr, program: Program) -> Result<Vec<u8>, CudaError> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> Status;
        let mut bytes = 0;
        // SAFETY: by this function's own contract; there is as much room as was asked for.
        unsafe {
            let failed = self.function::<Size>(size)?(program, &raw mut bytes) != 0;
            let mut found = vec![0u8; bytes];
            if failed || self.function::<Get>(get)?(program, found.as_mut_ptr().cast()) != 0 {
                return Err(CudaError::Broken("NVRTC does not return the compiled program"));
            }
            Ok(found)
        }
    }

    /// # Safety
    /// `F` is the type of the function called `name`.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, CudaError> {
        // SAFETY: by this function's own contract; the library stays open as long as `self`.
        let found = unsafe { self.0.get::<F>(name.to_bytes_with_nul()) };
        found.map(|function| *function).map_err(|_| CudaError::Broken("NVRTC lacks a required function"))
    }
}
