"""launch/ on the engines that people have: real ones, brought up on this machine."""
