model A, // first
  B      // second
config // before the brace
{ a = 1 }
mesh // why
{ tp }
module M(x: [T, // tokens
  D]) -> [T] // the result
{ // opens
  for i in // the loop
    0..L carry x { x = f(x) }
  if a { return x } // then
  else // otherwise
  { return y }
  if b {
    // nothing yet
  }
} // closes
