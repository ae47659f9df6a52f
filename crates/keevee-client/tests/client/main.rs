//! The client against nodes that answer by a script, over real sockets.

mod attempts;
mod fake;
mod operations;
mod routing;
mod stream;
