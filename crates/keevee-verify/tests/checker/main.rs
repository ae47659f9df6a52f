//! The linearizability checker: histories whose verdict a person knows, histories of a real execution, every
//! order tried by brute force, and another checker's opinion.

mod exhaustive;
mod known;
mod porcupine;
mod recording;
mod speed;
