"""Takes logs off the engines into files, lifts training events out of them, and reads them back by cursor."""
