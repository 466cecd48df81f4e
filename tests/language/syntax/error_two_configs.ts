config {}
config {}
