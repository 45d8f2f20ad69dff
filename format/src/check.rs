//! Structural check.
