"""What lets other evaluation kits and this one work on the same models, questions and answers."""
