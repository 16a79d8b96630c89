//! Matrices cut into panels: the form in which a product can take either side as it lies.

use std::{collections::TryReserveError, ops::Range};

use super::number::Number;

/// Columns of a panel: one cache line of f32. Wider ones would leave half of the sets of the nearest cache unused while
/// one half of a panel is at work.
pub(super) const PANEL: usize = 16;

/// A row of one panel.
pub(super) type Line<N> = [N; PANEL];

/// An R x C matrix as panels of 16 columns, one after the other, each row after row; rows and columns are filled up
/// with zeros to multiples of 16. Element (r, c) stands in line (c / 16) R + r at c mod 16.
#[derive(Debug)]
pub(super) struct Panels<N> {
    lines: Vec<Line<N>>,
    rows: usize,
}

/// Some of the rows and panels of a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a, N> {
    lines: &'a [Line<N>],
    /// Lines from panel to panel.
    stride: usize,
    rows: usize,
    panels: usize,
}

/// The same, to be written.
#[derive(Debug)]
pub(super) struct ViewMut<'a, N> {
    lines: &'a mut [Line<N>],
    stride: usize,
    rows: usize,
    panels: usize,
}

impl<N: Number> Panels<N> {
    pub(super) fn new(rows: usize, columns: usize) -> Result<Self, TryReserveError> {
        let rows = rows.next_multiple_of(PANEL);
        let len = rows * columns.div_ceil(PANEL);
        let mut lines = Vec::new();
        lines.try_reserve_exact(len)?;
        lines.resize(len, [N::ZERO; PANEL]);
        Ok(Self { lines, rows })
    }

    /// All lines, panel after panel.
    pub(super) fn lines(&self) -> &[Line<N>] {
        &self.lines
    }

    /// All lines, to be changed.
    pub(super) fn lines_mut(&mut self) -> &mut [Line<N>] {
        &mut self.lines
    }

    pub(super) fn clear(&mut self) {
        self.lines.fill([N::ZERO; PANEL]);
    }

    /// Takes over one row.
    pub(super) fn set_row(&mut self, row: usize, numbers: &[N]) {
        for (panel, part) in self.lines.chunks_exact_mut(self.rows).zip(numbers.chunks(PANEL)) {
            panel[row][..part.len()].copy_from_slice(part);
        }
    }

    /// Adds one row to `sums`.
    pub(super) fn add_row_to(&self, row: usize, sums: &mut [N]) {
        for (panel, part) in self.lines.chunks_exact(self.rows).zip(sums.chunks_mut(PANEL)) {
            for (sum, number) in part.iter_mut().zip(&panel[row]) {
                *sum = *sum + *number;
            }
        }
    }

    pub(super) fn view(&self) -> View<'_, N> {
        View { lines: &self.lines, stride: self.rows, rows: self.rows, panels: self.lines.len() / self.rows }
    }

    /// All of it, to be written.
    pub(super) fn view_mut(&mut self) -> ViewMut<'_, N> {
        let panels = self.lines.len() / self.rows;
        ViewMut { lines: &mut self.lines, stride: self.rows, rows: self.rows, panels }
    }

    /// Takes over a matrix that lies row after row of `columns`.
    pub(super) fn pack(&mut self, matrix: &[N], columns: usize) {
        for (index, panel) in self.lines.chunks_exact_mut(self.rows).enumerate() {
            let part = part_of(index, columns);
            for (line, row) in panel.iter_mut().zip(matrix.chunks_exact(columns)) {
                line[..part.len()].copy_from_slice(&row[part.clone()]);
            }
        }
    }

    /// Gives the matrix back row after row of `columns`.
    pub(super) fn unpack(&self, matrix: &mut [N], columns: usize) {
        for (index, panel) in self.lines.chunks_exact(self.rows).enumerate() {
            let part = part_of(index, columns);
            for (line, row) in panel.iter().zip(matrix.chunks_exact_mut(columns)) {
                row[part.clone()].copy_from_slice(&line[..part.len()]);
            }
        }
    }

    /// Takes over the transpose of a matrix that lies row after row: its `rows` become columns here.
    pub(super) fn pack_transposed(&mut self, matrix: &[N], rows: usize) {
        let columns = matrix.len() / rows;
        for (index, panel) in self.lines.chunks_exact_mut(self.rows).enumerate() {
            let part = part_of(index, rows);
            for (start, lines) in (0..columns).step_by(PANEL).zip(panel.chunks_mut(PANEL)) {
                for (place, row) in part.clone().enumerate() {
                    let row = &matrix[row * columns..][start..columns.min(start + PANEL)];
                    for (line, number) in lines.iter_mut().zip(row) {
                        line[place] = *number;
                    }
                }
            }
        }
    }

    /// Gives the transpose back row after row: its `rows` are columns here.
    pub(super) fn unpack_transposed(&self, matrix: &mut [N], rows: usize) {
        let columns = matrix.len() / rows;
        for (index, panel) in self.lines.chunks_exact(self.rows).enumerate() {
            let part = part_of(index, rows);
            for (start, lines) in (0..columns).step_by(PANEL).zip(panel.chunks(PANEL)) {
                for (place, row) in part.clone().enumerate() {
                    let row = &mut matrix[row * columns..][start..columns.min(start + PANEL)];
                    for (line, number) in lines.iter().zip(row) {
                        *number = line[place];
                    }
                }
            }
        }
    }
}

/// The transpose of a tile.
#[inline(always)]
#[allow(clippy::inline_always, reason = "part of loops that are compiled for several instruction sets")]
pub(super) fn transposed_tile<N: Number>(tile: &[Line<N>; PANEL]) -> [Line<N>; PANEL] {
    std::array::from_fn(|row| std::array::from_fn(|column| tile[column][row]))
}

/// The columns of the panel at `index` in a matrix of `columns`.
fn part_of(index: usize, columns: usize) -> Range<usize> {
    index * PANEL..columns.min((index + 1) * PANEL)
}

impl<'a, N> View<'a, N> {
    pub(super) fn row_count(&self) -> usize {
        self.rows
    }

    pub(super) fn panel_count(&self) -> usize {
        self.panels
    }

    /// Some of the rows.
    #[must_use]
    pub(super) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Self { lines: &self.lines[rows.start..], rows: rows.len(), ..self }
    }

    /// Some of the panels.
    #[must_use]
    pub(super) fn panels(self, panels: Range<usize>) -> Self {
        assert!(
            panels.start < panels.end && panels.end <= self.panels,
            "panels {panels:?} of {}",
            self.panels
        );
        Self { lines: &self.lines[panels.start * self.stride..], panels: panels.len(), ..self }
    }

    /// The lines of the panel at `index`, a row each.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "part of loops that are compiled for several instruction sets")]
    pub(super) fn panel(&self, index: usize) -> &'a [Line<N>] {
        &self.lines[index * self.stride..][..self.rows]
    }
}

impl<N> ViewMut<'_, N> {
    pub(super) fn row_count(&self) -> usize {
        self.rows
    }

    pub(super) fn panel_count(&self) -> usize {
        self.panels
    }

    /// Some of the rows.
    #[must_use]
    pub(super) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Self { lines: &mut self.lines[rows.start..], rows: rows.len(), ..self }
    }

    /// Some of the panels.
    #[must_use]
    pub(super) fn panels(self, panels: Range<usize>) -> Self {
        assert!(
            panels.start < panels.end && panels.end <= self.panels,
            "panels {panels:?} of {}",
            self.panels
        );
        Self { lines: &mut self.lines[panels.start * self.stride..], panels: panels.len(), ..self }
    }

    /// The lines of the panel at `index`, a row each.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "part of loops that are compiled for several instruction sets")]
    pub(super) fn panel(&mut self, index: usize) -> &mut [Line<N>] {
        &mut self.lines[index * self.stride..][..self.rows]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "nothing is computed")]
    fn what_is_packed_comes_back() {
        for (rows, columns) in [(1, 1), (3, 32), (5, 33), (70, 100), (64, 31)] {
            let matrix: Vec<f64> = (1..=rows * columns).map(|index| index as f64).collect();
            let mut panels = Panels::new(rows, columns).unwrap();
            panels.pack(&matrix, columns);
            let mut back = vec![0.0; matrix.len()];
            panels.unpack(&mut back, columns);
            assert_eq!(back, matrix);
            assert_eq!(panels.lines().iter().flatten().sum::<f64>(), matrix.iter().sum::<f64>());

            let mut transposed = Panels::new(columns, rows).unwrap();
            transposed.pack_transposed(&matrix, rows);
            back.fill(0.0);
            transposed.unpack_transposed(&mut back, rows);
            assert_eq!(back, matrix);
            let (row, column) = (rows - 1, columns - 1);
            assert_eq!(transposed.view().panel(row / PANEL)[column][row % PANEL], (rows * columns) as f64);
        }
    }
}
