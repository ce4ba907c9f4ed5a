//! sandbox.

pub mod birth;
pub mod crew;
pub mod identity;
pub mod keeper;
pub mod pool;
pub mod spawner;
pub mod wire;
