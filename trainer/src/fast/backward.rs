//! The way back: the gradients of a sequence that has just gone forward.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use super::{
    kernels::{self, Drops, Rope},
    number::Number,
    panels::{PANEL, Panels},
    product::{
        Accumulation::{Add, Replace},
        Left, product,
    },
    sequence::{Head, Room, Sequence, Worker, blocks, panels, replacing_if, set_keys, upper_product},
    shape::Shape,
    weights::{self, HeadGradients},
};

impl<N: Number> Worker<N> {
    /// Adds the gradients of the sequence that has just gone forward.
    pub(super) fn backward(&mut self, sequence: Sequence<'_, N>) {
        let Shape { width: d, tokens: t, .. } = self.shape;
        let weights = sequence.weights;
        let room = &mut self.room;

        // logits = x R: their derivatives stand in their place.
        let x = self.layers.last().map_or(&self.x, |layer| &layer.x);
        kernels::transpose(x.y.view(), room.x_t.view_mut());
        let dlogits = self.logits.view();
        product(Left::Plain(dlogits), room.x_t.view(), Add, self.gradients.lm_head.view_mut());
        product(Left::Transposed(weights.lm_head_t.view()), dlogits, Replace, room.dx.view_mut());

        for index in (0..self.layers.len()).rev() {
            let (before, from) = self.layers.split_at_mut(index);
            let x = &before.last().map_or(&self.x, |layer| &layer.x).y;
            let layer = &mut from[0];
            // x' = norm(x + norm(y)): the derivative goes both ways.
            layer.x.back(d, &mut room.dx);
            room.dy.lines_mut().copy_from_slice(room.dx.lines());
            layer.y.back(d, &mut room.dy);
            kernels::transpose(x.view(), room.x_t.view_mut());
            kernels::transpose(room.dy.view(), room.dy_t.view_mut());
            room.dx_t.clear();
            let heads = layer.heads.iter_mut().zip(&weights.heads).zip(&mut self.gradients.heads);
            for (head_index, ((head, weights), gradients)) in heads.enumerate() {
                set_keys(&mut self.keys, &sequence, index, head_index, t);
                let mut back =
                    HeadBack { shape: &self.shape, head, weights, gradients, room, blocks: &mut self.blocks };
                back.gate(Drops { rule: sequence.dropout, keys: &self.keys, first: 0 });
                back.read(x);
                back.neurons(sequence.rope);
            }
            kernels::add_transpose(room.dx_t.view(), room.dx.view_mut());
        }
        self.x.back(d, &mut room.dx);
        kernels::transpose(room.dx.view(), room.dx_t.view_mut());
        for (index, token) in sequence.tokens.iter().enumerate() {
            room.dx_t.add_row_to(index, &mut self.gradients.embed[*token as usize * d..][..d]);
        }
    }
}

/// One head of one layer, on the way back.
struct HeadBack<'a, N> {
    shape: &'a Shape,
    head: &'a mut Head<N>,
    weights: &'a weights::Head<N>,
    gradients: &'a mut HeadGradients<N>,
    room: &'a mut Room<N>,
    blocks: &'a mut [Panels<N>; 2],
}

impl<N: Number> HeadBack<'_, N> {
    /// y += g D, g = dropout(q v), v = relu(a E_v): from dy to da, the gradients of D and E_v, and in v's place dq.
    fn gate(&mut self, drops: Drops<'_>) {
        let Self { head, weights, gradients, room, .. } = self;
        kernels::transpose(head.a.y.view(), room.a_t.view_mut());
        let [g, dv] = &mut *self.blocks;
        for block in blocks(self.shape) {
            let part = 0..block.len();
            let decoder = Left::Transposed(weights.decoder_t.view().panels(panels(&block)));
            product(decoder, room.dy.view(), Replace, g.view_mut().rows(part.clone()));
            let (q, v) = (head.q.view().rows(block.clone()), head.v.view_mut().rows(block.clone()));
            let drops = Drops { first: block.start, ..drops };
            let (g_part, dv_part) = (g.view_mut().rows(part.clone()), dv.view_mut().rows(part.clone()));
            kernels::gate_backward(q, v, drops, g_part, dv_part);

            let (g, dv) = (g.view().rows(part.clone()), dv.view().rows(part));
            let decoder = gradients.decoder.view_mut().rows(block.clone());
            product(Left::Plain(g), room.dy_t.view(), Add, decoder);
            let encoder_v = gradients.encoder_v.view_mut().rows(block.clone());
            product(Left::Plain(dv), room.a_t.view(), Add, encoder_v);
            let accumulation = replacing_if(block.start == 0);
            let encoder_v = Left::Transposed(weights.encoder_v_t.view().rows(block));
            product(encoder_v, dv, accumulation, room.da.view_mut());
        }
    }

    /// a = norm(scores x): from da to dx, and to the derivatives by the scores. Those of s for t and of t for s are one
    /// number, because queries are keys.
    fn read(&mut self, x: &Panels<N>) {
        let Self { head, room, .. } = self;
        head.a.back(self.shape.width, &mut room.da);
        kernels::transpose(room.da.view(), room.a_t.view_mut());
        let scores = head.scores.view();
        for (index, start) in (0..scores.row_count()).step_by(PANEL).enumerate() {
            // A token is read by those after it only.
            let scores = scores.rows(start..start + PANEL).panels(index..scores.panel_count());
            let da = room.a_t.view().rows(start..room.a_t.view().row_count());
            product(Left::Plain(scores), da, Add, room.dx_t.view_mut().rows(start..start + PANEL));
        }
        upper_product(x.view(), room.da.view(), Replace, &mut room.dscores);
        kernels::keep_above_diagonal(room.dscores.view_mut());
        kernels::mirror(room.dscores.view_mut());
    }

    /// scores = r r^T, r = rope(q), q = relu(x E): to dx and the gradient of E.
    fn neurons(&mut self, rope: Rope<'_, N>) {
        let Self { head, weights, gradients, room, .. } = self;
        let [r, dr] = &mut *self.blocks;
        for block in blocks(self.shape) {
            let part = 0..block.len();
            let (q, rope) = (head.q.view().rows(block.clone()), rope.neurons(block.clone()));
            kernels::rope(q, rope, r.view_mut().rows(part.clone()));
            let r = r.view().rows(part.clone());
            product(Left::Plain(r), room.dscores.view(), Replace, dr.view_mut().rows(part.clone()));
            let dq = head.v.view_mut().rows(block.clone());
            kernels::rope_backward(q, dr.view().rows(part), rope, dq);

            let dq = head.v.view().rows(block.clone());
            let encoder = gradients.encoder.view_mut().rows(block.clone());
            product(Left::Plain(dq), room.x_t.view(), Add, encoder);
            product(Left::Transposed(weights.encoder_t.view().rows(block)), dq, Add, room.dx.view_mut());
        }
    }
}
