//! What is promised holds whatever fails: real nodes on a real cluster of brokers, with users who
//! come and go all the time, and an oracle that knows only what users did and what viewers were
//! told.

mod faults;
mod load;
mod one_node;
mod oracle;
mod people;
mod scene;
mod trace;
mod viewer;
mod watches;
