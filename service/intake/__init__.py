"""How what is asked for becomes rows: reading, checking and storing what users submit."""
