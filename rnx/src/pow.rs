//! `pow`, so that the program needs no library but the C library.
//!
//! indicatif, whose bar shows an upload, raises a number to a power where it guesses the speed; nothing else here asks
//! for the C library of mathematics. Looking for that one, mapping and binding it, would be done before each job: a
//! twelfth of a short one.
#![expect(
    unsafe_code,
    reason = "the linker finds it by its name in C; it is a pure function of two numbers"
)]

/// As `pow(3)`, by the port that the Rust project keeps.
#[unsafe(no_mangle)]
extern "C" fn pow(x: f64, y: f64) -> f64 {
    libm::pow(x, y)
}
