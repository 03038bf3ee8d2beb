"""What a teacher says of every crop of some epochs, stored once and given to any number of students."""
