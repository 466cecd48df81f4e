/** doc */
interface X { a: number }
