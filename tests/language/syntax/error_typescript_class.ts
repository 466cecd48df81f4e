export default class A extends B {
}
