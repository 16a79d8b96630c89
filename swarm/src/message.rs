//! What a child and a parent say to one another; see the crate's documentation for the way it goes.

use hatchery_common::blob::PieceSet;

/// The number of an ask, given by the child that asks; no two asks of one child to one parent share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// Which pieces a child will have for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    One(u32),
    /// Any one of these, as the parent likes.
    Any(PieceSet),
}

/// From a child to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToParent {
    /// Send one piece. Asks of a child are answered one after the other.
    Ask { ask: AskId, wanted: Wanted },
    /// An ask is not needed any more; one that is being answered is answered to its end.
    Cancel { ask: AskId },
}

/// From a parent to its child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToChild {
    /// What the parent has; the first message.
    Have(PieceSet),
    /// The parent has one more piece.
    Has(u32),
    /// The answer to an ask begins: this piece follows.
    Begins {
        ask: AskId,
        /// The piece that was chosen.
        index: u32,
    },
    /// All bytes of the piece that was begun. The bytes themselves stay with the shell, which checks them.
    Piece { ask: AskId, index: u32 },
    /// The parent has nothing of what was asked for, or has sent all of it to this child before.
    Nothing { ask: AskId },
}
