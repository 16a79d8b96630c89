//! The border to libtorch's C++ where tch has no function for it; everything unsafe about it stays here.
#![allow(unsafe_code)]

mod adamw;

pub use adamw::{AdamW, fused_adamw, has_fused_adamw};

use std::ffi::{CStr, c_char, c_int, c_void};

// Links libtorch.
use torch_sys as _;

/// A number that products are made of.
pub trait Element: Copy + Send + Sync + 'static + private::Sealed {
    /// Whether it is f64.
    const IS_DOUBLE: bool;
}

impl Element for f32 {
    const IS_DOUBLE: bool = false;
}

impl Element for f64 {
    const IS_DOUBLE: bool = true;
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A matrix within a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, E> {
    data: &'a [E],
    shape: Shape,
}

/// A matrix within a slice, to be written: neighbours in a row are neighbours in memory.
#[derive(Debug)]
pub struct MatrixMut<'a, E> {
    data: &'a mut [E],
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Shape {
    fn new(len: usize, rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows > 0 && columns > 0 && columns <= row_stride, "an empty or overlapping matrix");
        assert!(
            (rows - 1) * row_stride + columns <= len,
            "a matrix of {rows} x {columns} exceeds its {len} numbers"
        );
        Self { rows, columns, row_stride, column_stride: 1 }
    }
}

impl<'a, E: Element> Matrix<'a, E> {
    /// `rows` x `columns` numbers, row after row.
    pub fn new(data: &'a [E], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// The same with `row_stride` numbers from row to row.
    pub fn strided(data: &'a [E], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, shape: Shape::new(data.len(), rows, columns, row_stride) }
    }

    /// Some of the rows.
    #[must_use]
    pub fn rows(self, rows: std::ops::Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= self.shape.rows, "rows {rows:?} of {}", self.shape.rows);
        let data = &self.data[rows.start * self.shape.row_stride..];
        Self { data, shape: Shape { rows: rows.len(), ..self.shape } }
    }

    /// The transpose; nothing is moved.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Shape { rows, columns, row_stride, column_stride } = self.shape;
        let shape =
            Shape { rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride };
        Self { shape, ..self }
    }
}

impl<'a, E: Element> MatrixMut<'a, E> {
    /// `rows` x `columns` numbers, row after row.
    pub fn new(data: &'a mut [E], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// The same with `row_stride` numbers from row to row.
    pub fn strided(data: &'a mut [E], rows: usize, columns: usize, row_stride: usize) -> Self {
        let shape = Shape::new(data.len(), rows, columns, row_stride);
        Self { data, shape }
    }
}

/// Whether a product replaces what is there or is added to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accumulation {
    /// c = a b
    Replace,
    /// c += a b
    Add,
}

#[repr(C)]
struct View {
    data: *const c_void,
    rows: i64,
    columns: i64,
    row_stride: i64,
    column_stride: i64,
}

impl View {
    fn new(data: *const c_void, shape: &Shape) -> Self {
        Self {
            data,
            rows: shape.rows as i64,
            columns: shape.columns as i64,
            row_stride: shape.row_stride as i64,
            column_stride: shape.column_stride as i64,
        }
    }
}

unsafe extern "C" {
    fn hatchery_gemm(
        is_double: c_int,
        a: *const View,
        b: *const View,
        accumulates: c_int,
        c: *const View,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}

/// The product of `a` and `b`, in `c` as `accumulation` says. Panics with libtorch's message if it has no memory to work in.
pub fn gemm<E: Element>(a: Matrix<'_, E>, b: Matrix<'_, E>, accumulation: Accumulation, c: MatrixMut<'_, E>) {
    const MESSAGE_BYTES: usize = 1024;
    assert!(
        a.shape.columns == b.shape.rows && a.shape.rows == c.shape.rows && b.shape.columns == c.shape.columns,
        "a product of matrices that do not fit together"
    );
    let (left, right) =
        (View::new(a.data.as_ptr().cast(), &a.shape), View::new(b.data.as_ptr().cast(), &b.shape));
    let out = View::new(c.data.as_mut_ptr().cast(), &c.shape);
    let mut message: [c_char; MESSAGE_BYTES] = [0; MESSAGE_BYTES];
    // SAFETY: each view lies within its slice, as its maker has checked; the slices live through the call; `c` is
    // borrowed alone; Rust's E is what `is_double` says; the message is cut to its room and ends in 0.
    let failed = unsafe {
        hatchery_gemm(
            E::IS_DOUBLE.into(),
            &raw const left,
            &raw const right,
            (accumulation == Accumulation::Add).into(),
            &raw const out,
            message.as_mut_ptr(),
            MESSAGE_BYTES,
        ) != 0
    };
    if failed {
        // SAFETY: C++ has ended it with 0.
        let message = unsafe { CStr::from_ptr(message.as_ptr()) };
        panic!("libtorch cannot multiply two matrices: {}", message.to_string_lossy());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "small whole numbers are exact")]
    fn products_of_parts_and_transposes() {
        let a = [1.0, 2.0, 0.0, 3.0, 4.0, 0.0]; // 2 x 2 in rows of 3
        let b = [1.0, 0.0, 5.0, 1.0];
        let mut c = [0.0f64; 4];
        let left = Matrix::strided(&a, 2, 2, 3);
        gemm(left, Matrix::new(&b, 2, 2), Accumulation::Replace, MatrixMut::new(&mut c, 2, 2));
        assert_eq!(c, [11.0, 2.0, 23.0, 4.0]);
        gemm(
            left.transposed(),
            Matrix::new(&b, 2, 2).transposed(),
            Accumulation::Add,
            MatrixMut::new(&mut c, 2, 2),
        );
        assert_eq!(c, [12.0, 10.0, 25.0, 18.0]);
    }
}
