//! What a child and a parent say to one another, in the wire's messages.

use hatchery_common::{blob::PieceSet, field::FieldError};
use hatchery_proto::v1::{self, ask, to_child, to_parent};
use hatchery_swarm::{AskId, ToParent, Wanted};

/// A child's message in the wire's form.
pub(super) fn to_parent(message: &ToParent) -> v1::ToParent {
    let message = match message {
        ToParent::Ask { ask: AskId(ask), wanted } => {
            let wanted = match wanted {
                Wanted::One(index) => ask::Wanted::Piece(*index),
                Wanted::Any(pieces) => ask::Wanted::AnyOf(pieces.to_bytes()),
            };
            to_parent::Message::Ask(v1::Ask { ask: *ask, wanted: Some(wanted) })
        }
        ToParent::Cancel { ask: AskId(ask) } => to_parent::Message::Cancel(v1::Cancel { ask: *ask }),
    };
    v1::ToParent { message: Some(message) }
}

/// What is asked for, of a blob of `count` pieces.
pub fn wanted(count: u32, wanted: Option<ask::Wanted>) -> Result<Wanted, FieldError> {
    match wanted {
        Some(ask::Wanted::Piece(index)) if index < count => Ok(Wanted::One(index)),
        Some(ask::Wanted::Piece(index)) => {
            Err(FieldError::new("ask.piece", format!("there is no piece {index} of {count}")))
        }
        Some(ask::Wanted::AnyOf(bytes)) => Ok(Wanted::Any(pieces("ask.any_of", count, &bytes)?)),
        None => Err(FieldError::new("ask", "is empty")),
    }
}

/// A set of a blob's pieces.
pub(super) fn pieces(field: &str, count: u32, bytes: &[u8]) -> Result<PieceSet, FieldError> {
    PieceSet::from_bytes(count, bytes).ok_or_else(|| {
        FieldError::new(field, format!("{} bytes are not a set of {count} pieces", bytes.len()))
    })
}

/// A parent's message.
pub(super) fn to_child(message: to_child::Message) -> v1::ToChild {
    v1::ToChild { message: Some(message) }
}
