//! The fan-out of blobs: who fetches which piece from whom, so that a blob is on all nodes about when it has left its
//! source once.
//!
//! ```text
//! Tracker    all blobs, in the coordinator: told who has, wants, came, left and what went wrong -> a Plan for a receiver
//! Receiver   one blob on one node: told what parents have and what came -> what to ask of which parent
//! Server     one blob on one node: told who asks -> what to send to whom
//! ```
//!
//! All three are state machines without IO, clock or threads: what happens is told to them, and they say what to do. Times
//! are [`Duration`](std::time::Duration)s since any fixed moment, randomness comes from a seed. What they keep is bounded:
//! by [`limits`], by the number of nodes, or by that of a blob's pieces.
//!
//! # The protocol
//!
//! Two connections carry it, as `SwarmReport`, `PeerTrouble` and `FetchPlan` of the session and as the service `Peers`
//! (`proto/hatchery/v1/`). Names in brackets are this crate's.
//!
//! **Node and coordinator**, over the session that there is already. A node says:
//!
//! | it says | with | to |
//! |---|---|---|
//! | how it is reached, when it comes | whether it can be dialled, and its address for peers | [`Tracker::node_came`] |
//! | it has a blob, wants one, wants it no more | blob; for a wish the number of pieces here | [`Tracker::has_all`], [`Tracker::wants`], [`Tracker::leaves`] |
//! | how far it is, every few seconds | blob, number of pieces here | [`Tracker::progressed`] |
//! | what its link does | bytes per second each way; upwards only of times in which three or more had several pieces | [`Tracker::measured`] |
//! | trouble ([`Trouble`]), at once | blob, the parent, and which: stalled, slow, wrong bytes; or starved | [`Tracker::trouble`] |
//!
//! The coordinator says one thing: the [`Plan`] for a blob, which replaces the last one as a whole, with the address of
//! each parent. Plans are not numbered: they come in order, over one stream. A node that hears nothing more keeps the
//! parents that it has. A session that begins anew says again what the node has and wants, and gets its plans.
//!
//! **Child and parent**, over one stream in both directions for each blob, opened by the child on the bulk connection to
//! the parent's port (`Peers.Fetch`, the blob's id in the first message of the child):
//!
//! 1. The parent begins with its piece manifest if the child asks for that too, and with the set of pieces that it has
//!    ([`ToChild::Have`]: [`PieceSet::to_bytes`](hatchery_common::blob::PieceSet::to_bytes), at most 8 KiB). From then on it
//!    tells of each piece that it comes to have ([`ToChild::Has`]; a shell may gather them for some milliseconds).
//! 2. The child asks for one piece at a time ([`ToParent::Ask`]): for a certain one ([`Wanted::One`]), or for any one of a
//!    set ([`Wanted::Any`]). An ask has a number that grows. A child whose parent sends a piece every few milliseconds keeps
//!    a few asks open ([`limits::ASKS_AHEAD`]).
//! 3. The parent answers the asks of a child in order: first which piece it will be ([`ToChild::Begins`]), then its bytes
//!    ([`ToChild::Piece`], one message of at most 4 MiB), or that there is nothing for this ask ([`ToChild::Nothing`]). It
//!    never sends a piece twice over one stream.
//! 4. The child takes back an ask that is not needed any more ([`ToParent::Cancel`]); if its answer has begun, it comes.
//! 5. The child says that it has all of the blob ([`Server::child_finished`]) before it closes the stream; any other end is
//!    a loss ([`Server::child_left`]), and what was sent over it counts as never sent.
//!
//! A shell checks each piece against the manifest before it says [`Receiver::piece`] with `is_good`, writes it, and only then
//! tells its own children. For [`Arrival::Refused`] it says [`Receiver::ban`], reports what comes back, and cuts the
//! connection. After every message it does what [`Receiver::next`] and [`Server::next_send`] say, and [`Receiver::next`]
//! again at [`Receiver::wake_at`]. A connection that is lost is [`Receiver::parent_lost`]; it opens another, with pauses,
//! for as long as that parent is in the plan.
//!
//! # The policy
//!
//! - **The source chooses.** A receiver asks a parent that has everything for any one of the pieces that no other parent of
//!   its has; the server gives the one that it has given least often. So a source sends every piece once before any twice,
//!   whoever asks and whatever a receiver knows, and a piece whose receiver died counts as not sent. Of several that have
//!   everything each is asked for its share of the pieces first, so that they do not choose the same.
//! - **Rarest first** from all others: the piece that the fewest parents have, ties by lot, of the parent that will have
//!   sent it first. One ask at a time: what is committed to a queue spreads late.
//! - **Who is behind catches up**: a receiver with clearly less than its parents asks each for the next piece before the
//!   last has come, and one with clearly less than the mean is given two parents more.
//! - **Everybody is served at once.** A node has as many children as it has upload slots, and sends to all of them side by
//!   side; so every uplink is full, and the source gets its share of its children's downlinks.
//! - **As many parents as children**, six, drawn at random. A node that comes when no slot is free goes between a parent and
//!   one of its children. Slow nodes and those that cannot be dialled serve nobody, and do not take from the source what
//!   others wait for.
//! - **Second copies at the end only**, when all that is missing is on its way.
//! - **Slow is who sends little while half of its children complain.** Little alone may be for those who ask for nothing,
//!   and a complaint alone comes from every child now and then.
//! - **Trouble is the receiver's to see**: a parent that is silent for three times the time of a piece is left alone for a
//!   while and replaced; wrong bytes ban at once, and a node of whom two say so serves nobody any more.

pub mod limits;
mod mean;
mod message;
mod random;
mod receiver;
mod server;
mod tracker;

pub use hatchery_common::swarm::{Trouble, Wait};
pub use mean::DecayingMean;
pub use message::{AskId, ToChild, ToParent, Wanted};
pub use random::Random;
pub use receiver::{Arrival, Receiver, Step};
pub use server::{AskRefused, Send, Server};
pub use tracker::{Because, Direction, Plan, Reach, Suspect, Tracker};
