//! The client against nodes that answer by a script, over real sockets.

mod attempts;
mod fake;
mod operations;
mod ranges;
mod routing;
mod stream;
