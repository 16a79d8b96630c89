//! Weights and gradients in the forms that the products take.

use std::{collections::TryReserveError, ops::Range};

use super::{kernels, number::Number, panels::Panels, shape::Shape};

/// The weights of one head in panels, each in the two forms that the way there and the way back take.
#[derive(Debug)]
pub(super) struct Head<N> {
    /// D x M
    pub(super) encoder: Panels<N>,
    /// M x D
    pub(super) encoder_t: Panels<N>,
    /// D x M
    pub(super) encoder_v: Panels<N>,
    /// M x D
    pub(super) encoder_v_t: Panels<N>,
    /// M x D
    pub(super) decoder: Panels<N>,
    /// D x M
    pub(super) decoder_t: Panels<N>,
}

#[derive(Debug)]
pub(super) struct Packed<N> {
    /// V x D, row after row.
    pub(super) embed: Vec<N>,
    pub(super) heads: Vec<Head<N>>,
    /// D x V
    pub(super) lm_head: Panels<N>,
    /// V x D
    pub(super) lm_head_t: Panels<N>,
}

/// The gradients of one head's weights, M x D each: the encoders' lie transposed.
#[derive(Debug)]
pub(super) struct HeadGradients<N> {
    pub(super) encoder: Panels<N>,
    pub(super) encoder_v: Panels<N>,
    pub(super) decoder: Panels<N>,
}

/// The gradients of all weights.
#[derive(Debug)]
pub(super) struct Gradients<N> {
    /// V x D, row after row.
    pub(super) embed: Vec<N>,
    pub(super) heads: Vec<HeadGradients<N>>,
    /// Transposed: V x D.
    pub(super) lm_head: Panels<N>,
}

impl Shape {
    /// Where each of the five weights stands when all are in one row, in the order of [`crate::weights::Weights`].
    pub(super) fn ranges(&self) -> [Range<usize>; 5] {
        let head = self.width * self.heads * self.neurons;
        let embedding = self.vocabulary * self.width;
        let mut end = 0;
        [embedding, head, head, head, embedding].map(|len| {
            end += len;
            end - len..end
        })
    }

    /// Where one head's part stands in a weight of all heads.
    fn head(&self, head: usize) -> Range<usize> {
        let len = self.width * self.neurons;
        head * len..(head + 1) * len
    }
}

impl<N: Number> Packed<N> {
    pub(super) fn new(shape: &Shape) -> Result<Self, TryReserveError> {
        let (d, m, v) = (shape.width, shape.neurons, shape.vocabulary);
        let head = |_| {
            Ok(Head {
                encoder: Panels::new(d, m)?,
                encoder_t: Panels::new(m, d)?,
                encoder_v: Panels::new(d, m)?,
                encoder_v_t: Panels::new(m, d)?,
                decoder: Panels::new(m, d)?,
                decoder_t: Panels::new(d, m)?,
            })
        };
        Ok(Self {
            embed: Vec::new(),
            heads: (0..shape.heads).map(head).collect::<Result<_, TryReserveError>>()?,
            lm_head: Panels::new(d, v)?,
            lm_head_t: Panels::new(v, d)?,
        })
    }

    /// Takes over weights that stand in one row.
    pub(super) fn pack(&mut self, shape: &Shape, all: &[N], threads: usize) {
        let [embed, encoder, encoder_v, decoder, lm_head] = shape.ranges().map(|range| &all[range]);
        let (d, m, v) = (shape.width, shape.neurons, shape.vocabulary);
        self.embed.clear();
        self.embed.extend_from_slice(embed);
        self.lm_head.pack(lm_head, v);
        kernels::transpose(self.lm_head.view(), self.lm_head_t.view_mut());
        let heads: Vec<_> = self.heads.iter_mut().enumerate().collect();
        spread(heads, threads, |(index, head)| {
            let range = shape.head(index);
            head.encoder.pack(&encoder[range.clone()], m);
            kernels::transpose(head.encoder.view(), head.encoder_t.view_mut());
            head.encoder_v.pack(&encoder_v[range.clone()], m);
            kernels::transpose(head.encoder_v.view(), head.encoder_v_t.view_mut());
            head.decoder.pack(&decoder[range], d);
            kernels::transpose(head.decoder.view(), head.decoder_t.view_mut());
        });
    }
}

impl<N: Number> Gradients<N> {
    pub(super) fn new(shape: &Shape) -> Result<Self, TryReserveError> {
        let (d, m, v) = (shape.width, shape.neurons, shape.vocabulary);
        let head = |_| {
            Ok(HeadGradients {
                encoder: Panels::new(m, d)?,
                encoder_v: Panels::new(m, d)?,
                decoder: Panels::new(m, d)?,
            })
        };
        Ok(Self {
            embed: vec![N::ZERO; v * d],
            heads: (0..shape.heads).map(head).collect::<Result<_, TryReserveError>>()?,
            lm_head: Panels::new(v, d)?,
        })
    }

    pub(super) fn clear(&mut self) {
        self.embed.fill(N::ZERO);
        self.lm_head.clear();
        for head in &mut self.heads {
            head.encoder.clear();
            head.encoder_v.clear();
            head.decoder.clear();
        }
    }

    /// The sum of `parts` in their order, in one row; the first of them becomes the sum.
    pub(super) fn sum_up(parts: &mut [&mut Self], shape: &Shape, all: &mut [N], threads: usize) {
        let Some((sum, others)) = parts.split_first_mut() else { return };
        let (d, m, v) = (shape.width, shape.neurons, shape.vocabulary);
        let mut rest = all;
        let [embed, encoder, encoder_v, decoder, lm_head] = shape.ranges().map(|range| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(range.len());
            rest = after;
            part
        });
        for other in &*others {
            for (sum, term) in sum.embed.iter_mut().zip(&other.embed) {
                *sum = *sum + *term;
            }
            kernels::add(other.lm_head.lines(), sum.lm_head.lines_mut());
        }
        embed.copy_from_slice(&sum.embed);
        sum.lm_head.unpack_transposed(lm_head, d);
        let len = d * m;
        let outputs = encoder
            .chunks_exact_mut(len)
            .zip(encoder_v.chunks_exact_mut(len))
            .zip(decoder.chunks_exact_mut(len));
        let heads: Vec<_> = sum.heads.iter_mut().zip(outputs).enumerate().collect();
        spread(heads, threads, |(index, (head, ((encoder, encoder_v), decoder)))| {
            for other in &*others {
                let other = &other.heads[index];
                kernels::add(other.encoder.lines(), head.encoder.lines_mut());
                kernels::add(other.encoder_v.lines(), head.encoder_v.lines_mut());
                kernels::add(other.decoder.lines(), head.decoder.lines_mut());
            }
            head.encoder.unpack_transposed(encoder, d);
            head.encoder_v.unpack_transposed(encoder_v, d);
            head.decoder.unpack(decoder, d);
        });
        debug_assert_eq!(v * d, lm_head.len());
    }
}

/// Does `work` for each of `items`, on several threads.
fn spread<T: Send>(items: Vec<T>, threads: usize, work: impl Fn(T) + Sync) {
    let mut shares: Vec<Vec<T>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, item) in items.into_iter().enumerate() {
        shares[index % threads].push(item);
    }
    let work = &work;
    std::thread::scope(|scope| {
        for share in shares {
            scope.spawn(move || share.into_iter().for_each(work));
        }
    });
}
