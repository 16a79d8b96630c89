//! Functions compiled for several instruction sets, the widest of which is chosen at run time.

/// Defines functions whose body is compiled again for AVX2 and AVX-512. Within a body, `FUSED` says whether the machine
/// multiplies and adds in one go, and `WIDE` whether a line of 16 f32 fits into one register. Every machine that fuses
/// gets the same bits.
macro_rules! multiversion {
    ($($(#[$doc:meta])* $visibility:vis fn $name:ident<$number:ident>($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        #[allow(unsafe_code, reason = "each call stands behind a check that the processor has the instructions")]
        $visibility fn $name<$number: Number>($($argument: $kind),*) {
            #[inline(always)]
            #[allow(dead_code, clippy::inline_always, reason = "compiled once for each instruction set")]
            fn plain<$number: Number, const FUSED: bool, const WIDE: bool>($($argument: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<$number: Number>($($argument: $kind),*) { plain::<$number, true, true>($($argument),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$number: Number>($($argument: $kind),*) { plain::<$number, true, false>($($argument),*) }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    if is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                    {
                        // SAFETY: the processor has all six.
                        return unsafe { avx512($($argument),*) };
                    }
                    // SAFETY: the processor has both.
                    return unsafe { avx2($($argument),*) };
                }
                plain::<$number, false, false>($($argument),*)
            }
            #[cfg(not(target_arch = "x86_64"))]
            plain::<$number, { cfg!(target_arch = "aarch64") }, false>($($argument),*)
        }
    )*};
}

pub(super) use multiversion;
