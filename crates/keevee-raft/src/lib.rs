//! Raft behind the engine seam.
