mod protocol;
mod refound;
