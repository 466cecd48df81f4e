mesh { tp }
config {}
